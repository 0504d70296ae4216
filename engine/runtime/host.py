"""Host steps: operators run in Python, by their meaning or by onnx's reference evaluator."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import EngineError, KernelError, MissingExtraError
from engine.ir.types import Array, TensorType, Type
from engine.ops.control import ControlOperator
from engine.ops.fixed_sizes import fix_sizes
from engine.ops.operator import Operator, find
from engine.plan.structure import HostStep, Program

__all__ = ["Body", "HostCall", "host_operator"]


def host_operator(description: Mapping[str, Any]) -> Operator:
    """The operator that a step describes."""
    cls = find(str(description["domain"]), str(description["name"]), int(description["since"]))
    return cls.from_attributes(description.get("attributes", {}))


class HostCall:
    """A host step, ready to be called with its input values."""

    def __init__(self, step: HostStep, weights: Mapping[str, Array], where: str) -> None:
        self.where = where
        self.operator: Operator | None = None
        if step.function != "copy":
            self.operator = host_operator(step.operator)
        self.reference = step.function == "reference"
        self.bodies = [Body(body, weights) for body in step.bodies]
        self.count = len(step.outputs)

    def at(self, sizes: Mapping[str, int]) -> HostCall:
        """The call with the operator's own symbolic sizes as numbers; itself without such."""
        fixed = fix_sizes(self.operator, sizes)
        if fixed is self.operator:
            return self
        call = copy.copy(self)
        call.operator = fixed
        return call

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of the operator; KernelError names the step when it fails."""
        try:
            results = self._results(inputs)
        except EngineError:
            raise
        except Exception as error:
            raise KernelError(f"{self.where} failed: {error}") from error
        if not isinstance(results, tuple):
            results = (results,)
        outputs: tuple[Any, ...] = results[: self.count]
        return outputs

    def _results(self, inputs: Sequence[Any]) -> Any:
        if self.operator is None:
            return inputs[0]
        if self.reference:
            return _reference(self.operator, inputs)
        if isinstance(self.operator, ControlOperator):
            return self.operator.run(self.bodies, *inputs)
        return self.operator.meaning(*inputs)


def _reference(operator: Operator, inputs: Sequence[Any]) -> Any:
    try:
        module = importlib.import_module("engine.onnx_io.reference")
    except ImportError:
        raise MissingExtraError("onnx", "build", "this plan, which requires onnx,") from None
    return module.evaluate_node(operator, inputs)


class Body:
    """A body of a control-flow operator: a program whose values all live in Python."""

    def __init__(self, program: Program, weights: Mapping[str, Array]) -> None:
        self.program = program
        self.weights = weights
        self.calls: list[tuple[HostStep, HostCall]] = []
        for step in program.steps:
            if not isinstance(step, HostStep):
                raise KernelError("a body holds a step that does not run on the host")
            where = f"step {step.operator.get('name', step.function)} of a body"
            self.calls.append((step, HostCall(step, weights, where)))

    @property
    def output_types(self) -> Sequence[Type]:
        """The types of the outputs."""
        return [self.program.slots[index].type for index in self.program.outputs]

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        """Run the steps on values; the outputs are in the program's order."""
        values: list[Any] = [None] * len(self.program.slots)
        for index, slot in enumerate(self.program.slots):
            if slot.place == "weight":
                values[index] = self.weights[slot.name]
        for index, value in zip(self.program.inputs, inputs):
            values[index] = value
        for step, call in self.calls:
            given = [None if index is None else values[index] for index in step.inputs]
            for index, result in zip(step.outputs, call(given)):
                values[index] = _as_value(result, self.program.slots[index].type)
        return [values[index] for index in self.program.outputs]


def _as_value(result: Any, kind: Type) -> Any:
    """Tensors are arrays, also where an operator returned a NumPy scalar."""
    if isinstance(kind, TensorType) and not isinstance(result, np.ndarray) and result is not None:
        return np.asarray(result)
    return result
