"""Fused regions as CUDA C kernels: what is generated, with which choices.

Four forms. ``flat``: nothing is reduced, a thread computes a few vectors of points. ``rows``: a row
of the last axis is shared by some lanes of a warp, or by a block, and stays in registers: memory is
read once. ``passes``: rows too long for that are read again by every pass. ``columns``: the reduced
axis is strided and the axis before it is contiguous; neighbouring threads reduce neighbouring rows.
Reductions are in float32 (or wider) and their order depends on the choice alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from engine.cuda.c_expression import printable
from engine.cuda.kernel import DeviceKernel
from engine.cuda.size_text import SizeText, divides, reach
from engine.ir.sizes import Dim, product
from engine.ops.expression import Expression, call, constant, order
from engine.ops.functions import REDUCTIONS
from engine.ops.region import Load, Region, Store
from engine.plan.device import Scalar
from engine.plan.expressions import Range

__all__ = ["Form", "Generated", "RegionChoice", "check", "fitted", "generate", "is_vector"]

Form = Literal["flat", "rows", "passes", "columns"]


@dataclass(frozen=True, slots=True)
class RegionChoice:
    """How a region is spread over threads.

    ``threads`` per block; ``width`` neighbouring elements per access; ``count`` vectors that a
    thread has in flight (``rows``: as many as a row needs); ``lanes`` threads that share a row
    (``columns``: that share a column); ``rows`` that the same threads take at once, all of them
    read before the first is reduced (for the form of that name, else 1).
    """

    form: Form
    threads: int
    width: int
    count: int = 1
    lanes: int = 1
    rows: int = 1

    def to_json(self) -> dict[str, Any]:
        """The choice as a candidate's JSON; one row at once goes without saying."""
        return {name: value for name, value in asdict(self).items() if name != "rows" or value > 1}


@dataclass(frozen=True, slots=True)
class Generated:
    """A kernel, its grid, and its parameters: operands, outputs, then ``scalars``.

    ``inputs`` lists the operand positions that the kernel takes, in order.
    """

    kernel: DeviceKernel
    grid: tuple[Dim, ...]
    inputs: tuple[int, ...]
    outputs: int
    scalars: tuple[Scalar, ...]


def check(region: Region) -> None:
    """Raise ValueError for a region that has no CUDA C form."""
    nodes = order(*(store.value for store in region.stores))
    for dtype in {node.dtype for node in nodes} | {load.dtype for load in region.loads}:
        if not printable(dtype):
            raise ValueError(f"CUDA C kernels do not compute with {dtype.value}")
    if any(size == 0 for size in region.space):
        raise ValueError("the region is empty")
    for load in region.loads:
        if load.gather is not None and load.gather.bound == 0:
            raise ValueError("a gather from nothing")


def is_vector(item: Load | Store, width: int, axis: int, *, tail: bool = False) -> bool:
    """Whether ``width`` neighbouring points along ``axis`` are one aligned access.

    Tensors begin at multiples of 256 bytes. With ``tail`` a last vector may be incomplete, which
    is for regions of one axis.
    """
    if item.strides[axis] != 1 or width == 1:
        return item.strides[axis] == 1
    steps = [item.offset, *(step for place, step in enumerate(item.strides) if place != axis)]
    if isinstance(item, Load):
        if item.gather is not None:
            steps.append(item.gather.stride)
        for bound in item.bounds:
            if bound.axis == axis:
                if tail:
                    return False
                steps += [bound.low, bound.high]
    return all(divides(width, step) for step in steps)


def fitted(region: Region, choice: RegionChoice) -> RegionChoice:
    """The choice with narrower vectors where a region of points lies in slices of wider tensors."""
    if choice.form != "flat":
        return choice
    width, length, single = choice.width, region.space[-1], len(region.space) == 1

    def fits(width: int) -> bool:
        near = (s for s in region.stores if s.strides[-1] == 1)
        return (single or divides(width, length)) and all(
            is_vector(store, width, len(region.space) - 1, tail=single) for store in near
        )

    while width > 1 and not fits(width):
        width //= 2
    return replace(choice, width=width)


def _prepared(region: Region) -> Region:
    """The region with divisions by what a reduction gives turned into products, one division a row.

    The result is within two units in the last place of float32, in which reductions are computed.
    """
    stores = tuple(
        Store(_normalised(s.value), s.output, s.shape, s.offset, s.strides) for s in region.stores
    )
    return Region(region.space, region.loads, stores, region.operands)


def _normalised(root: Expression) -> Expression:
    done: dict[Expression, Expression] = {}
    reduced: dict[Expression, bool] = {}  # the same along the row, because of a reduction
    for node in order(root):
        inner = tuple(done[item] for item in node.operands)
        flags = [reduced[item] or item.function == "constant" for item in node.operands]
        reduced[node] = node.function in REDUCTIONS or (
            all(flags) and any(reduced[item] for item in node.operands)
        )
        wide = node.dtype.is_float and node.dtype.nbytes >= 4
        if node.function == "divide" and wide and flags[1]:
            done[node] = _quotient(node, inner, reduced)
        else:
            done[node] = Expression(node.function, node.dtype, inner, node.value)
    return done[root]


def _quotient(
    node: Expression, inner: tuple[Expression, ...], reduced: dict[Expression, bool]
) -> Expression:
    """A division as a product, where one side comes from a reduction."""
    left, right = inner
    if reduced[node] and right.function == "constant":  # a mean
        number = float(right.value or 0)
        inverse = constant(1 / number, node.dtype) if number else right
        if math.isfinite(number) and 1e-30 < abs(float(inverse.value or 0)) < 1e30:
            return call("multiply", left, inverse)
    elif reduced[node.operands[1]] and not reduced[node]:
        if right.function == "sqrt":
            return call("multiply", left, call("rsqrt", right.operands[0]))
        return call("multiply", left, call("reciprocal", right))
    return Expression(node.function, node.dtype, inner, node.value)


def generate(
    region: Region,
    choice: RegionChoice,
    *,
    constants: frozenset[int] = frozenset(),
    ranges: Mapping[str, Range] | None = None,
) -> Generated:
    """The kernel of a region whose accesses say where its tensors lie.

    ``constants`` are operands that no kernel writes, ``ranges`` bound the symbols. Raises
    ValueError when the choice does not fit the region.
    """
    from engine.cuda.region_columns import ColumnPrinter
    from engine.cuda.region_rows import FlatPrinter, RowPrinter

    check(region)
    region = _prepared(region)
    sizes = SizeText(_is_wide(region, ranges or {}), ranges or {})
    inputs = tuple(sorted({load.operand for load in region.loads}))
    printers = {"flat": FlatPrinter, "columns": ColumnPrinter}
    printer = printers.get(choice.form, RowPrinter)(region, choice, sizes, constants)
    source = printer.source()
    kernel = DeviceKernel("nvrtc", "ef_region", source, choice.threads, waits=True)
    outputs = len({store.output for store in region.stores})
    return Generated(kernel, printer.grid(), inputs, outputs, sizes.scalars)


def _is_wide(region: Region, ranges: Mapping[str, Range]) -> bool:
    """Whether indices of the region need 64 bits."""
    dims: list[Dim] = [product(region.space), *region.space]
    distances: list[float] = []
    items: list[Load | Store] = [*region.loads, *region.stores]
    for item in items:
        dims += [item.offset, *item.strides]
        counts, strides = list(region.space), list(item.strides)
        if isinstance(item, Load):
            for bound in item.bounds:
                dims += [bound.low, bound.high]
            if item.gather is not None:
                counts.append(item.gather.bound)
                strides.append(item.gather.stride)
                dims += [item.gather.bound, item.gather.stride]
        distances.append(reach(item.offset, counts, strides, ranges))
    return SizeText.needs_wide(dims, ranges) or max(distances) >= 1 << 31
