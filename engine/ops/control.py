"""Operators that run bodies: If, Loop, Scan, SequenceMap.

A body is a callable from arrays to a tuple of arrays. A node's inputs are the operator's own,
followed by the values that its bodies capture from outside; ``formal`` says how many are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.ir.types import Operand, OptionalType, SequenceType, TensorType, Type, UnknownSize
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register

__all__ = ["Body", "ControlOperator", "If", "Loop", "Scan", "SequenceMap"]


class Body(Protocol):
    """A body that can be called: arrays in, a sequence of values out."""

    @property
    def output_types(self) -> Sequence[Type]:
        """The types of what a call returns."""
        ...

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        """Run the body once."""
        ...


@dataclass(frozen=True, slots=True)
class ControlOperator(Operator):
    """An operator with bodies; ``formal`` inputs are its own, the rest are captured."""

    formal: int = 0
    output_count: int = 0

    def body_inputs(self, operands: Sequence[Operand | None]) -> Sequence[Sequence[Type]]:
        """For each body, the types of its formal inputs on the first turn."""
        raise NotImplementedError

    def infer_bodies(
        self, operands: Sequence[Operand | None], results: Sequence[Sequence[Type]]
    ) -> Sequence[Type]:
        """The types of the outputs, given the types that the bodies return."""
        raise NotImplementedError

    def run(self, bodies: Sequence[Body], *inputs: Any) -> tuple[Any, ...]:
        """The outputs, computed by calling bodies."""
        raise NotImplementedError


def merge_types(left: Type, right: Type) -> Type:
    """The narrowest type that holds both; ValueError when the kinds differ."""
    if left == right:
        return left
    if isinstance(left, OptionalType) != isinstance(right, OptionalType):
        optional, plain = (left, right) if isinstance(left, OptionalType) else (right, left)
        assert isinstance(optional, OptionalType)
        return OptionalType(merge_types(optional.element, plain))
    if isinstance(left, OptionalType) and isinstance(right, OptionalType):
        return OptionalType(merge_types(left.element, right.element))
    if isinstance(left, SequenceType) and isinstance(right, SequenceType):
        return SequenceType(merge_types(left.element, right.element))
    if isinstance(left, TensorType) and isinstance(right, TensorType) and left.dtype == right.dtype:
        if left.shape is None or right.shape is None or len(left.shape) != len(right.shape):
            return TensorType(left.dtype, None)
        dims = [a if a == b else UnknownSize() for a, b in zip(left.shape, right.shape)]
        return TensorType(left.dtype, tuple(dims))  # type: ignore[arg-type]
    raise ValueError(f"a value is {left} on one way through the model and {right} on another")


@register("If", since=1)
@dataclass(frozen=True, slots=True)
class If(ControlOperator):
    """One of two bodies, chosen by a boolean."""

    def body_inputs(self, operands: Sequence[Operand | None]) -> Sequence[Sequence[Type]]:
        return [(), ()]

    def infer_bodies(
        self, operands: Sequence[Operand | None], results: Sequence[Sequence[Type]]
    ) -> Sequence[Type]:
        then, otherwise = results
        if len(then) != len(otherwise):
            raise ValueError(f"the branches give {len(then)} and {len(otherwise)} outputs")
        return [merge_types(a, b) for a, b in zip(then, otherwise)]

    def run(self, bodies: Sequence[Body], *inputs: Any) -> tuple[Any, ...]:
        condition = bool(as_array(inputs[0]).reshape(-1)[0])
        return tuple(bodies[0 if condition else 1](*inputs[self.formal :]))


@register("Loop", since=1)
@dataclass(frozen=True, slots=True)
class Loop(ControlOperator):
    """A body repeated a number of times or while a condition holds, with carried values."""

    def body_inputs(self, operands: Sequence[Operand | None]) -> Sequence[Sequence[Type]]:
        from engine.ir.types import DType

        carried = [operand.type for operand in operands[2 : self.formal] if operand is not None]
        return [[TensorType(DType.INT64, ()), TensorType(DType.BOOL, ()), *carried]]

    def infer_bodies(
        self, operands: Sequence[Operand | None], results: Sequence[Sequence[Type]]
    ) -> Sequence[Type]:
        (body,) = results
        count = self.formal - 2
        carried = [
            merge_types(operand.type, out)
            for operand, out in zip(operands[2 : self.formal], body[1 : 1 + count])
            if operand is not None
        ]
        return carried + [_stacked(out) for out in body[1 + count :]]

    def run(self, bodies: Sequence[Body], *inputs: Any) -> tuple[Any, ...]:
        limit = inputs[0] if inputs else None
        trips = None if limit is None else int(as_array(limit).reshape(-1)[0])
        start = inputs[1] if len(inputs) > 1 else None
        going = True if start is None else bool(as_array(start).reshape(-1)[0])
        carried, captured = list(inputs[2 : self.formal]), inputs[self.formal :]
        count = len(carried)
        scanned: list[list[Any]] = [[] for _ in range(max(self.output_count - count, 0))]
        turn = 0
        while going and (trips is None or turn < trips):
            results = bodies[0](np.array(turn, np.int64), np.array(going), *carried, *captured)
            going = bool(as_array(results[0]).reshape(-1)[0])
            carried = list(results[1 : 1 + count])
            for column, item in zip(scanned, results[1 + count :]):
                column.append(np.array(item))
            turn += 1
        kinds = bodies[0].output_types[1 + count :]
        return (*carried, *(_stack(c, 0, kind) for c, kind in zip(scanned, kinds)))


def _stacked(out: Type) -> Type:
    if not isinstance(out, TensorType) or out.shape is None:
        return out if isinstance(out, TensorType) else SequenceType(out)
    return TensorType(out.dtype, (UnknownSize(), *out.shape))  # type: ignore[arg-type]


def _stack(items: Sequence[Any], axis: int, empty: Type) -> Any:
    """The slices joined along a new axis; ``empty`` is a slice's type, for when there is none."""
    if items:
        return np.stack(items, axis)
    assert isinstance(empty, TensorType)
    shape = [dim if isinstance(dim, int) else 0 for dim in empty.shape or ()]
    return np.zeros((*shape[:axis], 0, *shape[axis:]), empty.dtype.numpy)


@register("Scan", since=9)
@dataclass(frozen=True, slots=True)
class Scan(ControlOperator):
    """A body run over slices of its inputs, with carried states."""

    num_scan_inputs: int = 1
    scan_input_axes: tuple[int, ...] = ()
    scan_input_directions: tuple[int, ...] = ()
    scan_output_axes: tuple[int, ...] = ()
    scan_output_directions: tuple[int, ...] = ()

    def _input_axis(self, index: int, rank: int) -> int:
        axis = self.scan_input_axes[index] if self.scan_input_axes else 0
        return axis + rank if axis < 0 else axis

    def body_inputs(self, operands: Sequence[Operand | None]) -> Sequence[Sequence[Type]]:
        states = self.formal - self.num_scan_inputs
        types: list[Type] = []
        for index, operand in enumerate(operands[: self.formal]):
            assert operand is not None
            if index < states:
                types.append(operand.type)
                continue
            kind = operand.tensor
            if kind.shape is None:
                types.append(kind)
                continue
            axis = self._input_axis(index - states, len(kind.shape))
            types.append(TensorType(kind.dtype, kind.shape[:axis] + kind.shape[axis + 1 :]))
        return [types]

    def infer_bodies(
        self, operands: Sequence[Operand | None], results: Sequence[Sequence[Type]]
    ) -> Sequence[Type]:
        (body,) = results
        states = self.formal - self.num_scan_inputs
        first = operands[states]
        assert first is not None
        shape = first.tensor.shape
        length = None if shape is None else shape[self._input_axis(0, len(shape))]
        types: list[Type] = []
        for index, out in enumerate(body):
            if index < states:
                operand = operands[index]
                assert operand is not None
                types.append(merge_types(operand.type, out))
            elif isinstance(out, TensorType) and out.shape is not None and length is not None:
                rank = len(out.shape) + 1
                axis = self.scan_output_axes[index - states] if self.scan_output_axes else 0
                axis = axis + rank if axis < 0 else axis
                types.append(TensorType(out.dtype, (*out.shape[:axis], length, *out.shape[axis:])))
            else:
                types.append(TensorType(out.dtype, None) if isinstance(out, TensorType) else out)
        return types

    def run(self, bodies: Sequence[Body], *inputs: Any) -> tuple[Any, ...]:
        count = self.formal - self.num_scan_inputs
        states, captured = list(inputs[:count]), inputs[self.formal :]
        columns = []
        for index, array in enumerate(inputs[count : self.formal]):
            column = np.moveaxis(as_array(array), self._input_axis(index, array.ndim), 0)
            backwards = (
                index < len(self.scan_input_directions) and self.scan_input_directions[index]
            )
            columns.append(column[::-1] if backwards else column)
        scanned: list[list[Any]] = [[] for _ in range(max(self.output_count - count, 0))]
        for turn in range(len(columns[0])):
            results = bodies[0](*states, *(column[turn] for column in columns), *captured)
            states = list(results[:count])
            for out, item in zip(scanned, results[count:]):
                out.append(np.array(item))
        kinds = bodies[0].output_types[count:]
        return (*states, *(self._collect(i, c, kinds[i]) for i, c in enumerate(scanned)))

    def _collect(self, index: int, items: list[Any], empty: Type) -> Any:
        backwards = index < len(self.scan_output_directions) and self.scan_output_directions[index]
        axis = self.scan_output_axes[index] if self.scan_output_axes else 0
        if axis < 0:
            axis += 1 + len(empty.shape or ()) if isinstance(empty, TensorType) else 0
        return _stack(items[::-1] if backwards else items, axis, empty)


@register("Scan", since=8)
@dataclass(frozen=True, slots=True)
class BatchedScan(ControlOperator):
    """Scan of opset 8: a batch axis before the scanned axis, optional sequence lengths."""

    num_scan_inputs: int = 1
    directions: tuple[int, ...] = ()

    def body_inputs(self, operands: Sequence[Operand | None]) -> Sequence[Sequence[Type]]:
        states = self.formal - 1 - self.num_scan_inputs
        types: list[Type] = []
        for index, operand in enumerate(operands[1 : self.formal]):
            assert operand is not None
            kind = operand.tensor
            cut = 1 if index < states else 2
            types.append(TensorType(kind.dtype, None if kind.shape is None else kind.shape[cut:]))
        return [types]

    def infer_bodies(
        self, operands: Sequence[Operand | None], results: Sequence[Sequence[Type]]
    ) -> Sequence[Type]:
        (body,) = results
        states = self.formal - 1 - self.num_scan_inputs
        first = operands[1 + states]
        assert first is not None
        shape = first.tensor.shape
        types: list[Type] = []
        for index, out in enumerate(body):
            assert isinstance(out, TensorType)
            if shape is None or out.shape is None:
                types.append(TensorType(out.dtype, None))
            else:
                types.append(
                    TensorType(out.dtype, (*shape[: 1 if index < states else 2], *out.shape))
                )
        return types

    def run(self, bodies: Sequence[Body], *inputs: Any) -> tuple[Any, ...]:
        lengths, rest = inputs[0], inputs[1 : self.formal]
        count = len(rest) - self.num_scan_inputs
        outer = [
            self._one(bodies[0], batch, lengths, rest, count, inputs[self.formal :])
            for batch in range(rest[-1].shape[0])
        ]
        return tuple(np.stack(items) for items in zip(*outer))

    def _one(
        self,
        body: Body,
        batch: int,
        lengths: Any,
        rest: Sequence[Any],
        count: int,
        captured: Sequence[Any],
    ) -> tuple[Any, ...]:
        states = [array[batch] for array in rest[:count]]
        columns = [array[batch] for array in rest[count:]]
        full = columns[0].shape[0]
        length = full if lengths is None else int(lengths[batch])
        columns = [
            column[:length][::-1] if i < len(self.directions) and self.directions[i] else column
            for i, column in enumerate(columns)
        ]
        scanned: list[list[Any]] = [[] for _ in range(max(self.output_count - count, 0))]
        for turn in range(length):
            results = body(*states, *(column[turn] for column in columns), *captured)
            states = list(results[:count])
            for out, item in zip(scanned, results[count:]):
                out.append(np.array(item))
        padded = []
        for items in scanned:
            items += [np.zeros_like(items[0])] * (full - length)
            padded.append(np.stack(items))
        return (*states, *padded)


@register("SequenceMap", since=17)
@dataclass(frozen=True, slots=True)
class SequenceMap(ControlOperator):
    """A body run over the elements of sequences."""

    def body_inputs(self, operands: Sequence[Operand | None]) -> Sequence[Sequence[Type]]:
        types = []
        for operand in operands[: self.formal]:
            assert operand is not None
            kind = operand.type
            types.append(kind.element if isinstance(kind, SequenceType) else kind)
        return [types]

    def infer_bodies(
        self, operands: Sequence[Operand | None], results: Sequence[Sequence[Type]]
    ) -> Sequence[Type]:
        return [SequenceType(_loose(out)) for out in results[0]]

    def run(self, bodies: Sequence[Body], *inputs: Any) -> tuple[Any, ...]:
        formal, captured = inputs[: self.formal], inputs[self.formal :]
        columns: list[list[Any]] = [[] for _ in range(self.output_count)]
        for turn in range(len(formal[0])):
            items = [value[turn] if isinstance(value, list) else value for value in formal]
            for column, item in zip(columns, bodies[0](*items, *captured)):
                column.append(np.array(item))
        return tuple(columns)


def _loose(out: Type) -> Type:
    """The elements of a sequence may differ in shape."""
    return TensorType(out.dtype, None) if isinstance(out, TensorType) else out
