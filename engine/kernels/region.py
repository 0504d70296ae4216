"""The kernel of fused elementwise and reduction regions, and how a region becomes one.

The kernel's compile-time parts are the expressions and, per load and store, whether its innermost
stride is one, zero or any; sizes, offsets and strides are run-time arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from engine.ir.types import DType
from engine.kernels.c_expression import printable
from engine.kernels.isa import Isa
from engine.kernels.kernel import (
    Array,
    Kernel,
    refuse_others,
    register,
    take_choice,
    take_integer,
    take_list,
)
from engine.kernels.region_source import CHUNK, LANES, buffer_count, print_region
from engine.ops.expression import Expression, from_json, number_to_json, order, read_number, to_json
from engine.ops.functions import REDUCTIONS
from engine.ops.region import Bound, Gather, Load, Region, Store
from engine.ops.region_numpy import run

__all__ = ["LoadForm", "RegionKernel", "StoreForm"]

INNER = ("unit", "zero", "strided")
MOST = 32


@dataclass(frozen=True, slots=True)
class LoadForm:
    """How an input is read: innermost stride, index load (-1 for none), bounded axes, fill."""

    operand: int
    dtype: DType
    inner: str
    gather: int = -1
    bounds: tuple[int, ...] = ()
    fill: bool | int | float = 0


@dataclass(frozen=True, slots=True)
class StoreForm:
    """Which output takes which value, with which innermost stride."""

    output: int
    value: Expression
    inner: str


#: Sizes that may be negative, for an axis that is read backwards.
_SIGNED = re.compile(r"load\d+_(offset|stride\d+)")


@register
@dataclass(frozen=True, slots=True)
class RegionKernel(Kernel):
    """A fused region of ``rank`` axes over ``inputs`` inputs.

    ``layout`` is "rows", or "columns" for plain reductions of a strided last axis.
    """

    kind: ClassVar[str] = "region"

    rank: int
    inputs: int
    loads: tuple[LoadForm, ...]
    stores: tuple[StoreForm, ...]
    layout: str = "rows"

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> dict[str, object]:
        """Rank, loads, stores with their expressions, layout."""
        return {
            "rank": self.rank,
            "inputs": self.inputs,
            "loads": [
                {
                    "operand": item.operand,
                    "dtype": item.dtype.value,
                    "inner": item.inner,
                    "gather": item.gather,
                    "bounds": list(item.bounds),
                    "fill": number_to_json(item.fill),
                }
                for item in self.loads
            ],
            "stores": [
                {"output": item.output, "value": to_json(item.value), "inner": item.inner}
                for item in self.stores
            ],
            "layout": self.layout,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, ("rank", "inputs", "loads", "stores", "layout"))
        return cls(
            rank=take_integer(fields, "rank", 1, 8),
            inputs=take_integer(fields, "inputs", 0, MOST),
            loads=tuple(map(_read_load, take_list(fields, "loads", MOST))),
            stores=tuple(map(_read_store, take_list(fields, "stores", 16))),
            layout=take_choice(fields, "layout", ("rows", "columns")),
        )

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """Inputs, then outputs."""
        inputs = {item.operand: item.dtype.numpy.name for item in self.loads}
        outputs = {item.output: item.value.dtype.numpy.name for item in self.stores}
        first = tuple(inputs[place] for place in range(self.inputs))
        return first + tuple(outputs[place] for place in range(len(outputs)))

    @property
    def output_count(self) -> int:
        """How many tensors are written."""
        return len({item.output for item in self.stores})

    @property
    def size_names(self) -> tuple[str, ...]:
        """The space; per load offset, strides, gather stride and bound, bounds; per store."""
        axes = range(self.rank)
        names = [f"space{axis}" for axis in axes]
        for place, item in enumerate(self.loads):
            names += [f"load{place}_offset", *(f"load{place}_stride{axis}" for axis in axes)]
            if item.gather >= 0:
                names += [f"load{place}_index_stride", f"load{place}_index_bound"]
            for axis in item.bounds:
                names += [f"load{place}_low{axis}", f"load{place}_high{axis}"]
        for place in range(len(self.stores)):
            names += [f"store{place}_offset", *(f"store{place}_stride{axis}" for axis in axes)]
        return tuple(names)

    def named(self, sizes: Sequence[int]) -> dict[str, int]:
        """The sizes by name; where a load begins and its strides may be negative."""
        names = self.size_names
        if min(sizes, default=0) < 0 and len(sizes) == len(names):
            pairs = zip(names, sizes)
            Kernel.named(self, [abs(n) if _SIGNED.fullmatch(name) else n for name, n in pairs])
            return dict(zip(names, (int(size) for size in sizes), strict=True))
        return Kernel.named(self, sizes)

    def load_varies(self, place: int) -> bool:
        """Whether a load's value changes along the last axis."""
        item, last = self.loads[place], self.rank - 1
        along = item.inner != "zero" or last in item.bounds
        return along or (item.gather >= 0 and self.load_varies(item.gather))

    @property
    def reduces(self) -> bool:
        """Whether rows are reduced, so that a work item must be a whole row."""
        nodes = order(*(item.value for item in self.stores))
        return any(node.function in REDUCTIONS for node in nodes)

    def items(self, sizes: Sequence[int]) -> int:
        """Rows, chunks of rows, or blocks of columns."""
        self.named(sizes)
        space = sizes[: self.rank]
        if math.prod(space[:-1] if self.reduces else space) == 0:
            return 0
        if self.layout == "columns":
            return math.prod(space[:-2]) * -(-space[-2] // LANES)
        return math.prod(space[:-1]) * (1 if self.reduces else -(-space[-1] // CHUNK))

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Reach of every operand in elements; ValueError for a gather from nothing."""
        region = self.region(sizes)
        found = [0] * self.operand_count
        space = [int(size) for size in sizes[: self.rank]]
        # Of an empty row, what is the same along it is read and written all the same.
        empty = self.reduces and space[-1] == 0
        space[-1] = 1 if empty else space[-1]
        if math.prod(space) == 0:
            return tuple(found)
        for item in region.loads:
            if empty and (item.strides[-1] != 0 or self.rank - 1 in [b.axis for b in item.bounds]):
                continue
            counts = list(space)
            for bound in item.bounds:
                low, high = int(str(bound.low)), int(str(bound.high))
                counts[bound.axis] = min(high, space[bound.axis]) - low
            if min(counts) > 0:
                least, reach = _span(item.offset, counts, item.strides)
                if least < 0:
                    raise ValueError(f"region: a load reads {-least} elements before its operand")
                if item.gather is not None:
                    bound_, stride = int(str(item.gather.bound)), int(str(item.gather.stride))
                    if bound_ < 1:
                        raise ValueError("region: a gather from nothing")
                    reach += (bound_ - 1) * stride
                found[item.operand] = max(found[item.operand], reach)
        for form, store in zip(self.stores, region.stores, strict=True):
            if empty and form.inner != "zero":
                continue
            place = self.inputs + store.output
            found[place] = max(found[place], _span(store.offset, space, store.strides)[1])
        return tuple(found)

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """One row of eight-byte elements per kept value."""
        return buffer_count(self) * int(sizes[self.rank - 1]) * 8

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Nodes times points; elements that loads and stores touch at most once."""
        points = float(math.prod(sizes[: self.rank]))
        nodes = len(order(*(item.value for item in self.stores)))
        widths = [DType(name).nbytes for name in self.operand_dtypes]
        moved = sum(
            min(points, float(reach)) * width
            for reach, width in zip(self.extents(sizes), widths, strict=True)
        )
        return nodes * points, moved

    def source(self, name: str, isa: Isa) -> str:
        """The C text; the same for every instruction set, left to the compiler to vectorise."""
        return print_region(self, name)

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """The NumPy printer over the same pointers."""
        run(self.region(sizes), operands[: self.inputs], operands[self.inputs :])

    def region(self, sizes: Sequence[int]) -> Region:
        """The region with the numbers of ``sizes``, its operands flat."""
        self.named(sizes)
        values = iter(int(size) for size in sizes)
        space = tuple(next(values) for _ in range(self.rank))

        def strides(inner: str) -> tuple[int, ...]:
            found = [next(values) for _ in range(self.rank)]
            found[-1] = {"unit": 1, "zero": 0}.get(inner, found[-1])
            return tuple(found)

        loads = []
        for item in self.loads:
            offset, steps = next(values), strides(item.inner)
            gather = Gather(item.gather, next(values), next(values)) if item.gather >= 0 else None
            bounds = tuple(Bound(axis, next(values), next(values)) for axis in item.bounds)
            loads.append(Load(item.operand, item.dtype, offset, steps, gather, bounds, item.fill))
        stores = []
        for form in self.stores:
            offset = next(values)
            stores.append(Store(form.value, form.output, (), offset, strides(form.inner)))
        return Region(space, tuple(loads), tuple(stores))


def _span(offset: Any, counts: Sequence[int], strides: Sequence[Any]) -> tuple[int, int]:
    """The first element of an access and the one behind its last."""
    ways = [(count - 1) * int(stride) for count, stride in zip(counts, strides, strict=True)]
    least = int(offset) + sum(way for way in ways if way < 0)
    return least, int(offset) + sum(way for way in ways if way > 0) + 1


def _check(kernel: RegionKernel) -> None:
    """Refuse forms that contradict each other, as `Region` does for whole regions."""
    found = {item.operand for item in kernel.loads}
    if found != set(range(kernel.inputs)):
        raise ValueError(f"field loads: they read the inputs {sorted(found)} of {kernel.inputs}")
    kinds: dict[int, DType] = {}
    for item in kernel.loads:
        if item.inner not in INNER or kinds.setdefault(item.operand, item.dtype) is not item.dtype:
            raise ValueError(f"field loads: input {item.operand} has two types or a wrong stride")
    for store in kernel.stores:
        if store.inner not in INNER:
            raise ValueError(f"field stores: inner is {store.inner!r}")
        for node in order(store.value):
            if not printable(node.dtype):
                raise ValueError(f"field stores: C kernels do not compute with {node.dtype.value}")
    if any(not printable(item.dtype) for item in kernel.loads):
        raise ValueError("field loads: a type that C kernels do not read")
    kernel.region([1] * len(kernel.size_names))
    if kernel.layout == "columns":
        _check_columns(kernel)


def _check_columns(kernel: RegionKernel) -> None:
    roots = [item.value for item in kernel.stores]
    if kernel.rank < 2 or any(item.inner != "zero" for item in kernel.stores):
        raise ValueError("field layout: columns need two axes and stores once per row")
    for node in order(*roots):
        inner = order(*node.operands)
        if node.function in REDUCTIONS and any(item.function in REDUCTIONS for item in inner):
            raise ValueError("field layout: columns do not reduce what is reduced already")


def _read_load(value: object) -> LoadForm:
    if not isinstance(value, Mapping):
        raise ValueError("field loads: expected objects")
    refuse_others(value, ("operand", "dtype", "inner", "gather", "bounds", "fill"))
    dtype = DType(take_choice(value, "dtype", tuple(item.value for item in DType)))
    bounds = take_list(value, "bounds", 8)
    axes = tuple(take_integer({"bounds": axis}, "bounds", 0, 7) for axis in bounds)
    return LoadForm(
        operand=take_integer(value, "operand", 0, MOST),
        dtype=dtype,
        inner=take_choice(value, "inner", INNER),
        gather=take_integer(value, "gather", -1, MOST),
        bounds=axes,
        fill=read_number(value.get("fill"), dtype) if axes else 0,
    )


def _read_store(value: object) -> StoreForm:
    if not isinstance(value, Mapping):
        raise ValueError("field stores: expected objects")
    refuse_others(value, ("output", "value", "inner"))
    return StoreForm(
        output=take_integer(value, "output", 0, 15),
        value=from_json(value.get("value"), extended=True),
        inner=take_choice(value, "inner", INNER),
    )
