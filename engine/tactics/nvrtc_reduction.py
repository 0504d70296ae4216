"""Reductions over any neighbouring axes, by regions that read rows with strides.

What stays of them after fusion are those over other axes than the last one, or over several. Axes
before and after the reduced ones are one axis each, so that a region of at most three axes serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.cuda.region import RegionChoice, check
from engine.cuda.region_choices import choices
from engine.ir.graph import Node
from engine.ir.sizes import Dim, product
from engine.ir.types import DType, TensorType
from engine.kernels.region_lowering import simplified
from engine.lower.builder import ProgramBuilder
from engine.ops.arg_extreme import ArgExtreme
from engine.ops.expression import Expression, call, cast, constant, index, load
from engine.ops.reduce import ReduceOverAttribute, ReduceOverInput
from engine.ops.region import Load, Region, Store
from engine.passes.rows import row_length
from engine.tactics.nvrtc_region import launch_region
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcReduction", "reduction_region"]

_ROWS = {"Max": "row_max", "Min": "row_min", "Prod": "row_prod"}
_REDUCTIONS = tuple(
    f"Reduce{kind}"
    for kind in (
        "Sum",
        "Mean",
        "Max",
        "Min",
        "Prod",
        "SumSquare",
        "L1",
        "L2",
        "LogSum",
        "LogSumExp",
    )
)
#: Operators that give a value for every element, or the place of one, along an attribute's axis.
_ALONG = ("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin")
#: No index is as great.
_BEYOND = 1 << 62


class NvrtcReduction:
    """Serves reductions, softmax and searches for extremes along axes that are neighbours."""

    name = "nvrtc.reduction"
    kinds = (*_REDUCTIONS, *_ALONG)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """A candidate for each way to spread the region over threads that is worth measuring."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no GPU")
        try:
            region = reduction_region(node)
            check(region)
        except ValueError as error:
            return Refusal(self.name, str(error))
        return [
            self._candidate(region, choice) for choice in choices(simplified(region), point, target)
        ]

    def _candidate(self, region: Region, choice: RegionChoice) -> Candidate:
        def emit(builder: ProgramBuilder, node: Node, layer: int) -> None:
            assert node.inputs[0] is not None
            slots = [builder.slot(node.inputs[0])], [builder.slot(node.outputs[0])]
            launch_region(builder, region, choice, *slots, layer)

        return Candidate(self.name, choice.to_json(), emit)


def reduction_region(node: Node) -> Region:
    """The region of a node of one of the kinds served; ValueError says why there is none."""
    assert node.inputs[0] is not None
    kind = node.inputs[0].tensor
    if not kind.dtype.is_float and kind.dtype.numpy.kind not in "iu":
        raise ValueError(f"elements of {kind.dtype.value} are not reduced by generated kernels")
    outer, length, inner = _grouped(kind, _axes(node, kind.rank))
    space = (outer, inner, length)
    read = load(0, kind.dtype)
    value = _value(node, read, length)
    whole = node.kind in ("Softmax", "LogSoftmax", "Hardmax")
    strides = (length * inner, 1, inner)
    written = strides if whole else (inner, 1, 0)
    result = node.outputs[0].tensor
    loads = (Load(0, kind.dtype, 0, strides),)
    store = Store(cast(value, result.dtype), 0, result.dims, 0, written)
    return Region(space, loads, (store,))


def _axes(node: Node, rank: int) -> list[int]:
    """The reduced axes, ascending."""
    op = node.op
    if isinstance(op, ReduceOverAttribute):
        given: Sequence[int] = op.axes or range(rank)
    elif isinstance(op, ReduceOverInput):
        named = node.inputs[1] if len(node.inputs) > 1 else None
        if named is not None and named.constant is None:
            raise ValueError("the axes are known only when the model runs")
        given = [] if named is None or named.constant is None else named.constant.ravel().tolist()
        if not given and not op.noop_with_empty_axes:
            given = range(rank)
    elif isinstance(op, ArgExtreme) or op.since >= 13:
        given = [getattr(op, "axis", -1)]
    else:  # all axes from one on, taken as one
        first = getattr(op, "axis", 1)
        given = range(first + rank if first < 0 else first, rank)
    return sorted({int(axis) % rank for axis in given}) if rank else []


def _grouped(kind: TensorType, axes: Sequence[int]) -> tuple[Dim, Dim, Dim]:
    """Elements before, along and behind the reduced axes; ValueError when others lie between."""
    long = [axis for axis in axes if kind.dims[axis] != 1]
    if not long:
        return product(kind.dims), 1, 1
    first, last = long[0], long[-1]
    between = [axis for axis in range(first, last) if kind.dims[axis] != 1]
    if between != long[:-1]:
        raise ValueError(f"the axes {list(axes)} of {kind} are no neighbours")
    dims = kind.dims
    return product(dims[:first]), product(dims[first : last + 1]), product(dims[last + 1 :])


def _value(node: Node, read: Expression, length: Dim) -> Expression:
    narrow = read.dtype.is_float and read.dtype.nbytes < 4
    item = cast(read, DType.FLOAT32) if narrow else read
    if node.kind in _REDUCTIONS:
        return _reduced(node.kind.removeprefix("Reduce"), item, length)
    if node.kind in ("ArgMax", "ArgMin"):
        last = bool(getattr(node.op, "select_last_index", 0))
        return _place(item, "row_max" if node.kind == "ArgMax" else "row_min", last=last)
    if node.kind == "Hardmax":
        first = _place(item, "row_max", last=False)
        one, none = constant(1, read.dtype), constant(0, read.dtype)
        return call("select", call("equal", index(2), first), one, none)
    shifted = call("subtract", item, call("row_max", item))
    powers = call("exp", shifted)
    total = call("row_sum", powers)
    if node.kind == "LogSoftmax":
        return call("subtract", shifted, call("log", total))
    return call("divide", powers, total)


def _reduced(kind: str, item: Expression, length: Dim) -> Expression:
    makers: dict[str, Callable[[Expression], Expression]] = {
        "L1": lambda x: call("row_sum", call("abs", x)),
        "SumSquare": lambda x: call("row_sum", call("multiply", x, x)),
        "L2": lambda x: call("sqrt", call("row_sum", call("multiply", x, x))),
        "LogSum": lambda x: call("log", call("row_sum", x)),
        "LogSumExp": _log_sum_exp,
    }
    if kind in ("Mean", "L2", "LogSum", "LogSumExp") and not item.dtype.is_float:
        raise ValueError(f"Reduce{kind} of integers goes by another type")
    if kind == "Mean":
        return call("divide", call("row_sum", item), row_length(length, item.dtype))
    if kind in makers:
        return makers[kind](item)
    return call(_ROWS.get(kind, "row_sum"), item)


def _log_sum_exp(item: Expression) -> Expression:
    """Less the greatest element, so that no exponential overflows, unless it is not finite."""
    peak = call("row_max", item)
    wild = call("logical_or", call("isnan", peak), call("isinf", peak))
    safe = call("select", wild, constant(0, item.dtype), peak)
    powers = call("exp", call("subtract", item, safe))
    return call("add", call("log", call("row_sum", powers)), safe)


def _place(item: Expression, extreme: str, *, last: bool) -> Expression:
    """The index of the first or last extreme element; NaN is the most extreme of all."""
    hit = call("equal", item, call(extreme, item))
    if item.dtype.is_float:
        hit = call("logical_or", hit, call("isnan", item))
    other = constant(-1 if last else _BEYOND, DType.INT64)
    found = call("select", hit, index(2), other)
    return call("row_max" if last else "row_min", found)


register(NvrtcReduction())
