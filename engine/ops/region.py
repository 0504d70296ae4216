"""A fused region: strided loads, one expression per store, row reductions in between.

The space is a box of points. A load reads, at each point, the element at its offset plus the sum of
index times stride; it may add a gathered index and may be bounded, reading a fill value outside.
Reductions run over the last axis of the space and their results may be used again along the row,
so softmax and layer normalisation are one region. All sizes, offsets and strides, in elements, may
be symbolic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from engine.ir.sizes import Dim, dim_from_json, dim_to_json, evaluate, substitute, symbols
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.expression import Expression, from_json, number_to_json, order, read_number, to_json
from engine.ops.functions import REDUCTIONS
from engine.ops.operator import DOMAIN, Operator, register
from engine.ops.region_numpy import run, whole

__all__ = ["Bound", "Gather", "Load", "Region", "Store", "solve_symbols", "varies"]

MOST_AXES = 8
MOST_LOADS = 32
MOST_STORES = 16
MOST_OPERANDS = 32
Number = bool | int | float


@dataclass(frozen=True, slots=True)
class Gather:
    """An index read by load ``load``, times ``stride``, is added to the position.

    Negative indices count from ``bound``; indices outside are brought to the nearest valid one.
    """

    load: int
    stride: Dim
    bound: Dim


@dataclass(frozen=True, slots=True)
class Bound:
    """Along ``axis`` only points with low <= index < high read; the one at ``low`` has index 0."""

    axis: int
    low: Dim
    high: Dim


@dataclass(frozen=True, slots=True)
class Load:
    """Where operand ``operand`` is read at a point; ``strides`` has one entry per axis."""

    operand: int
    dtype: DType
    offset: Dim
    strides: tuple[Dim, ...]
    gather: Gather | None = None
    bounds: tuple[Bound, ...] = ()
    fill: Number = 0


@dataclass(frozen=True, slots=True)
class Store:
    """Where an expression over the loads is written in output ``output`` of the given shape.

    A stride of 0 on the last axis says that the value is the same along the row and written once.
    """

    value: Expression
    output: int
    shape: tuple[Dim, ...]
    offset: Dim
    strides: tuple[Dim, ...]


def varies(node: Expression, loads: Sequence[Load], axis: int) -> bool:
    """Whether a value changes along the last axis, ``axis``, of the space."""
    return _varying(node, loads, axis)[node]


def _load_varies(position: int, loads: Sequence[Load], axis: int) -> bool:
    item = loads[position]
    along = item.strides[axis] != 0 or any(bound.axis == axis for bound in item.bounds)
    return along or (item.gather is not None and _load_varies(item.gather.load, loads, axis))


def _varying(root: Expression, loads: Sequence[Load], axis: int) -> dict[Expression, bool]:
    found: dict[Expression, bool] = {}
    for node in order(root):
        if node.function == "load":
            found[node] = _load_varies(int(node.value or 0), loads, axis)
        elif node.function == "index":
            found[node] = node.value == axis
        else:
            found[node] = node.function not in REDUCTIONS and any(
                found[item] for item in node.operands
            )
    return found


@register("Region", since=1, domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class Region(Operator):
    """A fused elementwise or reduction region.

    ``operands`` holds the shapes of the inputs, from which the symbols get their values when the
    meaning runs. Construction raises ValueError when the parts contradict each other.
    """

    symbolic: ClassVar[bool] = False

    space: tuple[Dim, ...]
    loads: tuple[Load, ...]
    stores: tuple[Store, ...]
    operands: tuple[tuple[Dim, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        _check(self)

    @property
    def output_count(self) -> int:
        """How many tensors are written."""
        return max(store.output for store in self.stores) + 1

    def infer(self, *operands: Any) -> Sequence[Type]:
        """The declared output shapes; ValueError for inputs of other element types."""
        for item in self.loads:
            given: Operand | None = operands[item.operand] if item.operand < len(operands) else None
            if given is None or given.dtype is not item.dtype:
                found = "nothing" if given is None else given.dtype.value
                raise ValueError(f"operand {item.operand}: found {found}, expected {item.dtype}")
        return [TensorType(dtype, shape) for dtype, shape in self.outputs()]

    def outputs(self) -> list[tuple[DType, tuple[Dim, ...]]]:
        """The element types and shapes of the outputs."""
        found = {store.output: (store.value.dtype, store.shape) for store in self.stores}
        return [found[position] for position in range(len(found))]

    def meaning(self, *inputs: Any) -> Any:
        """The outputs; elements that no store writes are 0."""
        arrays = [as_array(item, order="C") for item in inputs]
        bound = self.bind(solve_symbols(self.operands, arrays))
        results = [
            np.zeros([whole(dim) for dim in shape], dtype.numpy) for dtype, shape in bound.outputs()
        ]
        flat = [item.reshape(-1) for item in arrays]
        run(bound, flat, [item.reshape(-1) for item in results])
        return results[0] if len(results) == 1 else tuple(results)

    def bind(self, values: Mapping[str, Dim]) -> Region:
        """The region with symbols replaced by numbers or other sizes."""
        if not values:
            return self

        def to(dim: Dim) -> Dim:
            return substitute(dim, values)

        def many(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
            return tuple(map(to, dims))

        loads = tuple(
            Load(
                item.operand,
                item.dtype,
                to(item.offset),
                many(item.strides),
                item.gather
                and Gather(item.gather.load, to(item.gather.stride), to(item.gather.bound)),
                tuple(Bound(b.axis, to(b.low), to(b.high)) for b in item.bounds),
                item.fill,
            )
            for item in self.loads
        )
        stores = tuple(
            Store(s.value, s.output, many(s.shape), to(s.offset), many(s.strides))
            for s in self.stores
        )
        return Region(many(self.space), loads, stores, tuple(map(many, self.operands)))

    def attributes(self) -> dict[str, Any]:
        """The region as JSON."""
        return {
            "space": _dims(self.space),
            "loads": [_load_to_json(item) for item in self.loads],
            "stores": [
                {
                    "value": to_json(item.value),
                    "output": item.output,
                    "shape": _dims(item.shape),
                    "offset": dim_to_json(item.offset),
                    "strides": _dims(item.strides),
                }
                for item in self.stores
            ],
            "operands": [_dims(item) for item in self.operands],
        }

    @classmethod
    def from_attributes(cls, values: Mapping[str, Any]) -> Region:
        """Read `attributes`' JSON, which may be hostile; ValueError says what is wrong with it."""
        if set(values) != {"space", "loads", "stores", "operands"}:
            raise ValueError("a region has the fields space, loads, stores and operands")
        return cls(
            _read_dims(values["space"], MOST_AXES),
            tuple(map(_read_load, _rows(values["loads"], MOST_LOADS))),
            tuple(map(_read_store, _rows(values["stores"], MOST_STORES))),
            tuple(_read_dims(item, 32) for item in _rows(values["operands"], MOST_OPERANDS)),
        )


def _check(region: Region) -> None:
    rank = len(region.space)
    if not 1 <= rank <= MOST_AXES or not region.stores:
        raise ValueError(f"a region needs 1 to {MOST_AXES} axes and a store, found {rank} axes")
    if len(region.loads) > MOST_LOADS or len(region.stores) > MOST_STORES:
        raise ValueError("a region has too many loads or stores")
    for place, item in enumerate(region.loads):
        _check_load(item, place, region)
    kinds: dict[int, tuple[DType, tuple[Dim, ...]]] = {}
    for store in region.stores:
        if len(store.strides) != rank:
            raise ValueError(f"a store has {len(store.strides)} strides, expected {rank}")
        kind = (store.value.dtype, store.shape)
        if kinds.setdefault(store.output, kind) != kind:
            raise ValueError(f"two stores give output {store.output} different types")
        varying = _check_value(store.value, region)
        if store.strides[-1] == 0 and region.space[-1] != 1 and varying[store.value]:
            raise ValueError("a value that changes along the row is stored with stride 0")
    if sorted(kinds) != list(range(len(kinds))):
        raise ValueError(f"the outputs are {sorted(kinds)}, expected 0 to {len(kinds) - 1}")


def _check_load(item: Load, place: int, region: Region) -> None:
    rank = len(region.space)
    if not 0 <= item.operand < MOST_OPERANDS or len(item.strides) != rank:
        raise ValueError(f"load {place} needs an operand and {rank} strides")
    if region.operands and item.operand >= len(region.operands):
        raise ValueError(f"load {place} reads operand {item.operand} of {len(region.operands)}")
    axes = [bound.axis for bound in item.bounds]
    if len(set(axes)) != len(axes) or any(not 0 <= axis < rank for axis in axes):
        raise ValueError(f"load {place} is bounded along the axes {axes}")
    if item.gather is not None:
        if not 0 <= item.gather.load < place:
            raise ValueError(f"load {place} is indexed by load {item.gather.load}, not before it")
        index = region.loads[item.gather.load]
        if index.dtype not in (DType.INT32, DType.INT64):
            raise ValueError(f"load {place} is indexed by {index.dtype.value}")


def _check_value(value: Expression, region: Region) -> dict[Expression, bool]:
    for node in order(value):
        place = node.value
        if node.function == "load":
            if not isinstance(place, int) or not 0 <= place < len(region.loads):
                raise ValueError(f"an expression reads load {place} of {len(region.loads)}")
            if region.loads[place].dtype is not node.dtype:
                raise ValueError(f"load {place} is no {node.dtype.value}")
        elif node.function == "index" and not (
            isinstance(place, int) and 0 <= place < len(region.space)
        ):
            raise ValueError(f"an expression has the index of axis {place}")
    return _varying(value, region.loads, len(region.space) - 1)


def solve_symbols(shapes: Sequence[Sequence[Dim]], arrays: Sequence[Array]) -> dict[str, int]:
    """Values of the symbols in declared shapes, from actual ones; each size linear in one."""
    known: dict[str, int] = {}
    pairs = []
    for shape, array in zip(shapes, arrays, strict=False):
        if len(shape) != array.ndim:
            raise ValueError(f"an operand has {array.ndim} axes, expected {len(shape)}")
        pairs += list(zip(shape, array.shape, strict=True))
    for _ in range(len(pairs) + 1):
        for dim, size in pairs:
            open_names = [name for name in sorted(symbols(dim)) if name not in known]
            if len(open_names) == 1:
                name = open_names[0]
                at = [evaluate(dim, {**known, name: value}) for value in (1, 2)]
                slope = at[1] - at[0]
                if slope:
                    known[name] = (size - at[0]) // slope + 1
    for dim, size in pairs:
        if symbols(dim) <= set(known) and evaluate(dim, known) != size:
            raise ValueError(f"an operand has the size {size}, expected {dim}")
    return known


def _dims(dims: Sequence[Dim]) -> list[Any]:
    return [dim_to_json(dim) for dim in dims]


def _load_to_json(item: Load) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operand": item.operand,
        "dtype": item.dtype.value,
        "offset": dim_to_json(item.offset),
        "strides": _dims(item.strides),
    }
    if item.gather is not None:
        stride, bound = dim_to_json(item.gather.stride), dim_to_json(item.gather.bound)
        found["gather"] = {"load": item.gather.load, "stride": stride, "bound": bound}
    if item.bounds:
        found["bounds"] = [[b.axis, dim_to_json(b.low), dim_to_json(b.high)] for b in item.bounds]
        found["fill"] = number_to_json(item.fill)
    return found


def _rows(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"a region holds no list of at most {most} parts")
    return value


def _names(value: Any, depth: int = 0) -> set[str]:
    """All strings inside a size's JSON that are not its operators."""
    if isinstance(value, str):
        return {value} if len(value) <= 256 else set()
    if isinstance(value, list) and depth < 64:
        return set().union(*(_names(item, depth + 1) for item in value[1:]), set())
    return set()


def _dim(value: Any) -> Dim:
    return dim_from_json(value, _names(value))


def _read_dims(value: Any, most: int) -> tuple[Dim, ...]:
    return tuple(map(_dim, _rows(value, most)))


def _integer(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value < most:
        raise ValueError(f"a region holds {value!r}, expected an integer below {most}")
    return value


def _fields(value: Any, needed: set[str], optional: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not needed <= set(value) <= needed | optional:
        raise ValueError(f"a part of a region needs the fields {', '.join(sorted(needed))}")
    return value


def _read_load(value: Any) -> Load:
    row = _fields(value, {"operand", "dtype", "offset", "strides"}, {"gather", "bounds", "fill"})
    dtype = DType(row["dtype"])
    gather = None
    if "gather" in row:
        inner = _fields(row["gather"], {"load", "stride", "bound"}, set())
        place = _integer(inner["load"], MOST_LOADS)
        gather = Gather(place, _dim(inner["stride"]), _dim(inner["bound"]))
    bounds = []
    for item in _rows(row.get("bounds", []), MOST_AXES):
        if not isinstance(item, list) or len(item) != 3:
            raise ValueError("a bound is no [axis, low, high]")
        bounds.append(Bound(_integer(item[0], MOST_AXES), _dim(item[1]), _dim(item[2])))
    fill = read_number(row["fill"], dtype) if "fill" in row else 0
    operand = _integer(row["operand"], MOST_OPERANDS)
    strides = _read_dims(row["strides"], MOST_AXES)
    return Load(operand, dtype, _dim(row["offset"]), strides, gather, tuple(bounds), fill)


def _read_store(value: Any) -> Store:
    row = _fields(value, {"value", "output", "shape", "offset", "strides"}, set())
    return Store(
        from_json(row["value"], extended=True),
        _integer(row["output"], MOST_STORES),
        _read_dims(row["shape"], 32),
        _dim(row["offset"]),
        _read_dims(row["strides"], MOST_AXES),
    )
