"""Scalar expressions: what elementwise operators, fused regions and epilogues compute.

An expression is a small directed acyclic graph of closed functions over loads, constants and
casts. Nodes are interned: equal expressions are one object, so that comparing is cheap and shared
parts are computed, printed and stored once. The NumPy printer (`evaluate`) is the meaning of every
elementwise operator; the C printer is `engine.kernels.c_expression`. Fixed once for all printers:
round half to even, integer division truncates, ``min`` and ``max`` propagate NaN, casts from float
to integer saturate, arithmetic on floats below 32 bits is done in float32 and rounded back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from threading import RLock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from engine.ir.types import Array, DType
from engine.ops.arrays import as_array
from engine.ops.conversions import convert, is_narrow, limits, round_to, wide_array
from engine.ops.functions import FUNCTIONS, REDUCTIONS, result_type

__all__ = [
    "Expression",
    "call",
    "cast",
    "constant",
    "evaluate",
    "from_json",
    "index",
    "load",
    "loads",
    "order",
    "roots_from_json",
    "roots_to_json",
    "substitute",
    "to_json",
]

Number = bool | int | float
MAX_NODES = 4096
MAX_POSITION = 255

_INTERNED: WeakValueDictionary[tuple[Any, ...], Expression] = WeakValueDictionary()
_LOCK = RLock()


def _renew_lock() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _LOCK
    _LOCK = RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Expression:
    """One node of an expression; equal nodes are the same object.

    ``function`` is "load" (``value`` is the position of the loaded operand), "constant" (``value``
    is the number), "index" (``value`` is the axis whose running index is meant), "cast", or the
    name of a function in the table of functions.
    """

    __slots__ = ("__weakref__", "dtype", "function", "operands", "value")

    function: str
    dtype: DType
    operands: tuple[Expression, ...]
    value: Number | None

    def __new__(
        cls,
        function: str,
        dtype: DType,
        operands: tuple[Expression, ...] = (),
        value: Number | None = None,
    ) -> Expression:
        """The one node with these fields; `call` and its neighbours check types as well."""
        key = (function, dtype, tuple(id(item) for item in operands), type(value), repr(value))
        with _LOCK:
            found = _INTERNED.get(key)
            if found is None:
                found = object.__new__(cls)
                object.__setattr__(found, "function", function)
                object.__setattr__(found, "dtype", dtype)
                object.__setattr__(found, "operands", operands)
                object.__setattr__(found, "value", value)
                _INTERNED[key] = found
            return found

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an expression cannot be changed (attribute {name!r})")

    def __reduce__(self) -> tuple[Callable[[Any], Expression], tuple[Any]]:
        return _from_pickle, (to_json(self),)

    def __repr__(self) -> str:
        return f"Expression({self})"

    def __str__(self) -> str:
        texts: dict[Expression, str] = {}
        for node in order(self):
            inner = ", ".join(texts[item] for item in node.operands)
            text = {
                "load": f"x{node.value}",
                "constant": f"{node.value}",
                "index": f"i{node.value}",
                "cast": f"{node.dtype.value}({inner})",
            }.get(node.function, f"{node.function}({inner})")
            texts[node] = text if len(text) <= 400 else text[:397] + "..."
        return texts[self]

    @classmethod
    def from_json(cls, value: Any) -> Expression:
        """Read an expression that may be hostile; ValueError says what is wrong with it."""
        return from_json(value)

    def to_json(self) -> list[list[Any]]:
        """The expression as JSON."""
        return to_json(self)


def load(position: int, dtype: DType) -> Expression:
    """The element of operand ``position`` at the current point."""
    return Expression("load", dtype, (), int(position))


def constant(value: Number, dtype: DType) -> Expression:
    """A number, rounded to the type; ValueError for an integer outside its range."""
    if dtype is DType.BOOL:
        return Expression("constant", dtype, (), bool(value))
    if dtype.is_integer:
        low, high = limits(dtype)
        if int(value) != value or not low <= value <= high:
            raise ValueError(f"the constant {value} is no {dtype.value}")
        return Expression("constant", dtype, (), int(value))
    if not dtype.is_float:
        raise ValueError(f"an expression holds no constants of type {dtype.value}")
    with np.errstate(over="ignore"):
        return Expression("constant", dtype, (), float(dtype.numpy.type(value)))


def index(axis: int) -> Expression:
    """The running index along an axis of a region's space, as int64."""
    return Expression("index", DType.INT64, (), int(axis))


def cast(operand: Expression, dtype: DType) -> Expression:
    """The operand converted; itself when it already has the type."""
    if operand.dtype is dtype:
        return operand
    for side in (operand.dtype, dtype):
        if side is DType.STRING or side.is_complex:
            raise ValueError(f"an expression does not convert {side.value}")
    return Expression("cast", dtype, (operand,))


def call(function: str, *operands: Expression) -> Expression:
    """A function of the table applied to operands; its table row decides the result's type.

    Raises ValueError for an unknown function, a wrong count, or types that do not fit.
    """
    dtype = result_type(function, tuple(item.dtype for item in operands))
    return Expression(function, dtype, operands)


def order(*roots: Expression, known: Collection[Expression] = ()) -> list[Expression]:
    """All distinct nodes, operands before their users; the order depends on the structure only.

    Known nodes, and what only they need, are left out.
    """
    found: dict[Expression, None] = {}
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                found.setdefault(node)
            elif node not in found and node not in known:
                stack.append((node, True))
                stack.extend((item, False) for item in reversed(node.operands))
    return list(found)


def loads(*roots: Expression) -> dict[int, DType]:
    """The operand positions that are read, in ascending order, with their element types."""
    found: dict[int, DType] = {}
    for node in order(*roots):
        if node.function == "load":
            assert isinstance(node.value, int)
            found[node.value] = node.dtype
    return dict(sorted(found.items()))


def substitute(root: Expression, replacements: Mapping[int, Expression]) -> Expression:
    """The expression with loads replaced by other expressions; ValueError for another type."""
    done: dict[Expression, Expression] = {}
    for node in order(root):
        if node.function == "load" and node.value in replacements:
            assert isinstance(node.value, int)
            other = replacements[node.value]
            if other.dtype is not node.dtype:
                raise ValueError(
                    f"operand {node.value} is {node.dtype.value}, found {other.dtype.value}"
                )
            done[node] = other
        else:
            operands = tuple(done[item] for item in node.operands)
            done[node] = Expression(node.function, node.dtype, operands, node.value)
    return done[root]


def evaluate(expression: Expression, operands: Sequence[Array]) -> Array:
    """The NumPy printer: the expression over broadcastable arrays, one per load position."""

    def leaf(node: Expression) -> Array:
        if node.function == "load":
            return operands[int(node.value or 0)]
        raise ValueError("an index has a value only inside a region")

    return evaluate_roots([expression], leaf)[0]


def evaluate_roots(
    roots: Sequence[Expression],
    leaf: Callable[[Expression], Array],
    axis: int = -1,
    length: int | None = None,
) -> list[Array]:
    """The values of several expressions that share parts.

    ``leaf`` gives the array of a load or index node. Row reductions run over ``axis`` (which then
    has ``length`` elements) and keep it with size 1.
    """
    nodes = order(*roots)
    last = {item: step for step, node in enumerate(nodes) for item in node.operands}
    last.update(dict.fromkeys(roots, len(nodes)))
    values: dict[Expression, Array] = {}
    owned: set[Expression] = set()
    with np.errstate(all="ignore"):
        for step, node in enumerate(nodes):
            if node.function in ("load", "index"):
                values[node] = leaf(node)
            elif node.function == "constant":
                values[node] = as_array(node.value).astype(node.dtype.numpy)
            else:
                spare = [item for item in node.operands if last[item] == step and item in owned]
                inputs = [values[item] for item in node.operands]
                out = [values[item] for item in spare]
                values[node] = _apply(node, inputs, out, axis, length)
                if not any(values[node] is item for item in inputs) or spare:
                    owned.add(node)
            for item in node.operands:
                if last[item] == step:
                    values.pop(item, None)
    return [values[root] for root in roots]


def _apply(
    node: Expression, inputs: list[Array], spare: list[Array], axis: int, length: int | None
) -> Array:
    """One node's value, written into a spare operand where NumPy can."""
    if node.function == "cast":
        return convert(inputs[0], node.dtype)
    if node.function in REDUCTIONS:
        return _reduce(node, inputs[0], axis, length)
    row = FUNCTIONS[node.function]
    if is_narrow(node.operands[-1].dtype) and node.function != "select":
        result = row.numpy(*[wide_array(item) for item in inputs])
        return as_array(result) if row.boolean else round_to(as_array(result), node.dtype)
    if isinstance(row.numpy, np.ufunc):
        shape = np.broadcast_shapes(*(item.shape for item in inputs))
        for item in spare:
            if item.shape == shape and item.dtype == node.dtype.numpy and item.flags.writeable:
                return as_array(row.numpy(*inputs, out=item))
    result = as_array(row.numpy(*inputs))
    return result if result.dtype == node.dtype.numpy else result.astype(node.dtype.numpy)


def _reduce(node: Expression, values: Array, axis: int, length: int | None) -> Array:
    values = values if values.ndim else values.reshape(1)
    if length is not None and values.shape[axis] != length:  # constant along the row
        shape = list(values.shape)
        shape[axis] = length
        values = np.broadcast_to(values, shape)
    row = REDUCTIONS[node.function]
    if values.shape[axis] == 0:
        return _of_nothing(node, values, axis)
    result = row.numpy(wide_array(values), axis=axis, keepdims=True)
    if is_narrow(node.dtype):
        return round_to(as_array(result), node.dtype)
    return as_array(result).astype(node.dtype.numpy, copy=False)


def _of_nothing(node: Expression, values: Array, axis: int) -> Array:
    """What a reduction gives over no element: a sum 0, a product 1, a maximum the least number."""
    low, high = limits(node.dtype) if node.dtype.is_integer else (-math.inf, math.inf)
    starts = {"row_sum": 0, "row_prod": 1, "row_max": low, "row_min": high}
    shape = list(values.shape)
    shape[axis] = 1
    return np.full(shape, starts[node.function], node.dtype.numpy)


def number_to_json(value: Number | None) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def roots_to_json(roots: Sequence[Expression]) -> dict[str, Any]:
    """Several expressions that share parts: a list of nodes and the roots' places in it."""
    nodes = order(*roots)
    places = {node: place for place, node in enumerate(nodes)}
    rows: list[list[Any]] = []
    for node in nodes:
        if node.function in ("load", "constant", "index"):
            rows.append([node.function, node.dtype.value, number_to_json(node.value)])
        else:
            first = (
                [node.function, node.dtype.value] if node.function == "cast" else [node.function]
            )
            rows.append(first + [places[item] for item in node.operands])
    return {"nodes": rows, "roots": [places[root] for root in roots]}


def to_json(expression: Expression) -> list[list[Any]]:
    """The expression as a list of nodes; operands are places of earlier nodes, the last is it."""
    nodes: list[list[Any]] = roots_to_json([expression])["nodes"]
    return nodes


def from_json(value: Any, *, extended: bool = False) -> Expression:
    """Read `to_json`'s form, which may be hostile; ValueError says what is wrong with it.

    ``extended`` admits index nodes and row reductions, which only regions have.
    """
    return _read_nodes(value, extended)[-1]


def _from_pickle(value: Any) -> Expression:
    return from_json(value, extended=True)


def roots_from_json(value: Any, *, extended: bool = False) -> list[Expression]:
    """Read `roots_to_json`'s form, which may be hostile; ValueError says what is wrong with it."""
    if not isinstance(value, dict) or set(value) != {"nodes", "roots"}:
        raise ValueError("expressions are no object of nodes and roots")
    nodes = _read_nodes(value["nodes"], extended)
    if not isinstance(value["roots"], list) or not 0 < len(value["roots"]) <= MAX_NODES:
        raise ValueError("the roots of expressions are no list of places")
    return [nodes[_place(item, len(nodes))] for item in value["roots"]]


def _read_nodes(value: Any, extended: bool) -> list[Expression]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_NODES:
        raise ValueError(f"an expression is no list of 1 to {MAX_NODES} nodes")
    nodes: list[Expression] = []
    for row in value:
        if not (isinstance(row, list) and 2 <= len(row) <= 4 and isinstance(row[0], str)):
            raise ValueError(f"node {len(nodes)} of an expression is no [function, ...] list")
        nodes.append(_read_node(row, nodes, extended))
    return nodes


def _read_node(row: list[Any], nodes: list[Expression], extended: bool) -> Expression:
    name = row[0]
    if name in ("index", *REDUCTIONS) and not extended:
        raise ValueError(f"{name} is allowed only inside a region")
    if name in ("load", "constant", "index", "cast"):
        if len(row) != 3 or not isinstance(row[1], str):
            raise ValueError(f"a {name} node needs a type and a value")
        dtype = DType(row[1])
        if name == "cast":
            return cast(nodes[_place(row[2], len(nodes))], dtype)
        if name == "constant":
            return constant(read_number(row[2], dtype), dtype)
        if type(row[2]) is not int or not 0 <= row[2] <= MAX_POSITION:
            raise ValueError(f"a {name} node has the position {row[2]!r}")
        if name == "index" and dtype is not DType.INT64:
            raise ValueError("an index node is int64")
        return load(row[2], dtype) if name == "load" else index(row[2])
    return call(name, *(nodes[_place(item, len(nodes))] for item in row[1:]))


def _place(item: Any, count: int) -> int:
    if type(item) is not int or not 0 <= item < count:
        raise ValueError(f"an expression node refers to {item!r}, expected 0 to {count - 1}")
    return item


def read_number(value: Any, dtype: DType) -> Number:
    if dtype.is_float and value in ("inf", "-inf", "nan"):
        return float(value)
    good: Iterable[type] = (bool,) if dtype is DType.BOOL else (int,)
    if dtype.is_float:
        good = (int, float)
    if type(value) not in tuple(good):
        raise ValueError(f"the constant {value!r} is no {dtype.value}")
    if type(value) is int and abs(value) >= 1 << 64:
        raise ValueError("an integer constant is out of range")
    result: Number = value
    return result
