"""Which operators a region can hold, and what each is as expressions over one row.

A row-wise operator has a space, the shape over which it runs; its inputs are full (they broadcast
to the space) or hold one value per row. Results are expressions over the inputs' expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.ir.graph import Node, Value
from engine.ir.types import Dim, DType, TensorType, is_bound
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import Expression, call, cast, constant, load, substitute

__all__ = ["REGION_DTYPES", "RowForm", "row_form", "row_length"]

Shape = tuple[Dim, ...]

#: Element types that regions are made of; the narrower ones run by their operators' meanings.
REGION_DTYPES = frozenset(
    {
        *(DType.FLOAT32, DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16, DType.BOOL),
        *(DType.INT8, DType.INT16, DType.INT32, DType.INT64),
        *(DType.UINT8, DType.UINT16, DType.UINT32, DType.UINT64),
    }
)


@dataclass(frozen=True, slots=True)
class RowForm:
    """A node as a part of a region: its space, and its result from its inputs' expressions.

    ``per_row`` says that the result is one value per row (the last axis has size 1 or is gone);
    ``reads`` how many of the node's inputs are elements (further ones are constant axes);
    ``reduces`` that it is computed from a whole row, so that no longer row may take its place.
    """

    space: Shape
    build: Callable[[Sequence[Expression | None]], Expression]
    per_row: bool = False
    reads: int = 64
    reduces: bool = False


def row_form(node: Node) -> RowForm | None:
    """How a region computes this node, or None."""
    values = [value for value in node.inputs if value is not None]
    if not node.outputs or not values or not all(_computable(v) for v in [*values, *node.outputs]):
        return None
    if not node.only_first_read:
        return None
    maker = _FORMS.get(node.kind)
    if isinstance(node.op, ElementwiseOperator):
        return _elementwise(node)
    return maker(node) if maker is not None else None


def _computable(value: Value) -> bool:
    kind = value.type
    return isinstance(kind, TensorType) and is_bound(kind) and kind.dtype in REGION_DTYPES


def _elementwise(node: Node) -> RowForm | None:
    shape = node.outputs[0].tensor.dims
    op = node.op
    assert isinstance(op, ElementwiseOperator)
    if not shape:
        return None
    dtypes = [None if value is None else value.tensor.dtype for value in node.inputs]
    try:
        op.expression(*(None if d is None else load(i, d) for i, d in enumerate(dtypes)))
    except ValueError:
        return None  # a rule that no expression states, as a cast that does not saturate

    def build(operands: Sequence[Expression | None]) -> Expression:
        formal = [None if d is None else load(i, d) for i, d in enumerate(dtypes)]
        body = op.expression(*formal)
        return substitute(body, {i: e for i, e in enumerate(operands) if e is not None})

    return RowForm(shape, build)


def _space(node: Node) -> Shape:
    assert node.inputs[0] is not None
    return node.inputs[0].tensor.dims


def _last_only(node: Node, axes: Sequence[int] | None) -> bool:
    rank = len(_space(node))
    return axes is not None and [a % rank for a in axes] == [rank - 1] if rank else False


def _axes(node: Node) -> list[int] | None:
    axes = getattr(node.op, "axes", None)
    if axes is not None:
        return list(axes)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = node.inputs[1].constant
        return None if given is None else [int(a) for a in given.reshape(-1)]
    return None


def wide(operand: Expression) -> Expression:
    """Floats below 32 bits are reduced in float32."""
    narrow = operand.dtype.is_float and operand.dtype.nbytes < 4
    return cast(operand, DType.FLOAT32) if narrow else operand


def row_length(size: Dim, dtype: DType) -> Expression:
    """How many elements a row has, counted where its size is not fixed."""
    if isinstance(size, int):
        return constant(size, dtype)
    return call("row_sum", constant(1, dtype))


def _reduction(node: Node) -> RowForm | None:
    space = _space(node)
    kind = node.kind.removeprefix("Reduce")
    source = node.inputs[0]
    assert source is not None
    if not _last_only(node, _axes(node)) or not source.tensor.dtype.is_float:
        return None
    count = space[-1]
    if count == 0:
        return None  # a region of no points writes nothing
    function = {"Max": "row_max", "Min": "row_min", "Prod": "row_prod"}.get(kind, "row_sum")

    def build(operands: Sequence[Expression | None]) -> Expression:
        (x, *_) = operands
        assert x is not None
        item = wide(x)
        if kind in ("SumSquare", "L2"):
            item = call("multiply", item, item)
        if kind == "L1":
            item = call("abs", item)
        total = call(function, item)
        if kind == "Mean":
            total = call("divide", total, row_length(count, total.dtype))
        if kind == "L2":
            total = call("sqrt", total)
        return cast(total, x.dtype)

    return RowForm(space, build, per_row=True, reads=1, reduces=True)


def _softmax(node: Node) -> RowForm | None:
    space = _space(node)
    if not node.outputs[0].tensor.dtype.is_float:
        return None
    if not space or getattr(node.op, "axis", -1) % len(space) != len(space) - 1:
        return None
    logarithm = node.kind == "LogSoftmax"

    def build(operands: Sequence[Expression | None]) -> Expression:
        (x, *_) = operands
        assert x is not None
        item = wide(x)
        shifted = call("subtract", item, call("row_max", item))
        powers = call("exp", shifted)
        total = call("row_sum", powers)
        if logarithm:
            return cast(call("subtract", shifted, call("log", total)), x.dtype)
        return cast(call("divide", powers, total), x.dtype)

    return RowForm(space, build, reduces=True)


def _normalization(node: Node) -> RowForm | None:
    """LayerNormalization and RMSNormalization over the last axis."""
    space = _space(node)
    count = space[-1] if space else 0
    if not node.outputs[0].tensor.dtype.is_float:
        return None
    if getattr(node.op, "axis", -1) % max(len(space), 1) != len(space) - 1:
        return None
    if not isinstance(count, int) or count == 0:
        return None
    epsilon = float(getattr(node.op, "epsilon", 1e-5))
    centred = node.kind == "LayerNormalization"

    def mean(item: Expression) -> Expression:
        assert isinstance(count, int)
        return call("divide", call("row_sum", item), constant(count, item.dtype))

    def build(operands: Sequence[Expression | None]) -> Expression:
        x, scale, shift = (*operands, None, None)[:3]
        assert x is not None
        item = wide(x)
        if centred:
            item = call("subtract", item, mean(item))
        variance = mean(call("multiply", item, item))
        root = call("sqrt", call("add", variance, constant(epsilon, item.dtype)))
        result = cast(call("divide", item, root), x.dtype)
        if scale is not None:
            result = call("multiply", result, cast(scale, result.dtype))
        if shift is not None:
            result = call("add", result, cast(shift, result.dtype))
        return cast(result, x.dtype)

    return RowForm(space, build, reduces=True)


def _lp_normalization(node: Node) -> RowForm | None:
    """Each row divided by its norm, where that is not 0."""
    space = _space(node)
    if not space or getattr(node.op, "axis", -1) % len(space) != len(space) - 1:
        return None
    if not node.outputs[0].tensor.dtype.is_float:
        return None
    absolute = getattr(node.op, "p", 2) == 1

    def build(operands: Sequence[Expression | None]) -> Expression:
        (x, *_) = operands
        assert x is not None
        item = wide(x)
        if absolute:
            norm = call("row_sum", call("abs", item))
        else:
            norm = call("sqrt", call("row_sum", call("multiply", item, item)))
        none = constant(0, item.dtype)
        share = call("divide", item, norm)
        return cast(call("select", call("equal", norm, none), none, share), x.dtype)

    return RowForm(space, build, reduces=True)


_FORMS: dict[str, Callable[[Node], RowForm | None]] = {
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _normalization,
    "RMSNormalization": _normalization,
    "LpNormalization": _lp_normalization,
    **{
        f"Reduce{kind}": _reduction
        for kind in ("Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2")
    },
}
