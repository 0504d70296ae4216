"""Convolutions with everything elementwise behind them, by cuDNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from engine.cuda.cudnn_calls import ACTIVATIONS, ConvolutionCall, EngineChoice
from engine.cuda.cudnn_search import engines
from engine.cuda.library_epilogue import EpilogueForm, epilogue_form
from engine.errors import PlanCorruptError
from engine.ir.graph import Node
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.plan.device import Operand
from engine.plan.recipes import RecipeStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["CudnnConvolution"]

_INPUTS = (DType.FLOAT16, DType.BFLOAT16)
_OUTPUTS = (*_INPUTS, DType.FLOAT32)
#: Elements of a 16-byte access.
_ALIGNED = 8
#: Engines to try for each order of the operands. A residual before the bias is the pattern of the
#: library's own precompiled kernels; kernels for other orders are compiled one by one.
_MOST = (6, 2)


class CudnnConvolution:
    """Serves FusedConv over packed NHWC in float16 and bfloat16, groups included.

    Channels of input, output and groups are multiples of 8 (a depthwise convolution has one each).
    A choice is an engine of one version of the library for fixed sizes, so layers with symbolic
    sizes are refused. A bias and a residual are added in either order: cuDNN has other kernels for
    each.
    """

    name = "cudnn.convolution"
    kinds = ("FusedConv",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """The library's own engines for the layer, its likeliest first."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "cuDNN needs an NVIDIA GPU")
        form = _form(node)
        if isinstance(form, str):
            return Refusal(self.name, form)
        offered: list[list[Candidate]] = []
        reason = ""
        for order, most in zip(_orders(node, form), _MOST):
            found = engines(_call(node, form, order), _sizes(node), target, most)
            if isinstance(found, str):
                reason = reason or found
                continue
            offered.append([self._candidate(node, form, order, item) for item in found])
        if not offered:
            return Refusal(self.name, reason)
        turns = zip_longest(*offered)
        return [candidate for turn in turns for candidate in turn if candidate is not None]

    def restore(self, node: Node, choice: Mapping[str, Any], target: Target) -> Candidate | None:
        """The candidate that a timing record names, made without a device.

        None when the record does not fit the layer.
        """
        form = _form(node)
        if isinstance(form, str) or not isinstance(target, CudaTarget):
            return None
        fields = dict(choice)
        order = fields.pop("order", None)
        if not isinstance(order, list) or tuple(order) not in list(_orders(node, form)):
            return None
        try:
            chosen = EngineChoice.from_json(fields)
        except PlanCorruptError:
            return None
        return self._candidate(node, form, tuple(order), chosen)

    def _candidate(
        self, node: Node, form: EpilogueForm, order: tuple[int, ...], chosen: EngineChoice
    ) -> Candidate:
        call = _call(node, form, order)
        operands = (*order, *form.after)
        return Candidate(
            self.name,
            {"order": list(order), **chosen.to_json()},
            lambda builder, layer_node, layer: _emit(
                builder, layer_node, layer, call, operands, chosen
            ),
        )


def _form(node: Node) -> EpilogueForm | str:
    """The epilogue's form when the layer is one that the library serves, else why not."""
    op, x, filters, y = node.op, node.inputs[0], node.inputs[1], node.outputs[0]
    assert isinstance(op, FusedConv) and x is not None and filters is not None
    dtypes = {x.tensor.dtype, filters.tensor.dtype}
    if len(dtypes) != 1 or x.tensor.dtype not in _INPUTS or y.tensor.dtype not in _OUTPUTS:
        return "only float16 and bfloat16 are asked for"
    if filters.constant is None:
        return "the filters are not constant, so they cannot be laid out beforehand"
    if op.input_layout != "NHWC":
        return "the input is not NHWC"
    dims = (*x.tensor.dims, *filters.tensor.dims, *y.tensor.dims)
    if not all(isinstance(dim, int) and dim > 0 for dim in dims):
        return "an engine holds for fixed sizes only, and a size is symbolic or zero"
    outputs, per_group = int(filters.tensor.dims[0]), int(filters.tensor.dims[1])  # type: ignore[arg-type]
    depthwise = per_group == 1 and outputs == op.group
    channels: tuple[int, ...] = (outputs, per_group * op.group)
    if not depthwise:
        channels = (*channels, per_group, outputs // op.group)
    if any(count % _ALIGNED for count in channels):
        return f"the channels {channels} are no multiples of {_ALIGNED}"
    form = epilogue_form(op.epilogue)
    if form is None or form.activation not in ACTIVATIONS or form.alpha != 1.0:
        return f"cuDNN's graphs have no word for {str(op.epilogue)[:200]}"
    for position in (*form.before, *form.after):
        value = node.inputs[1 + position]
        assert value is not None
        if op.kinds[position - 1] not in ("column", "full") or value.tensor.dtype not in _OUTPUTS:
            return f"a {op.kinds[position - 1]} operand of {value.tensor.dtype.value}"
    return form


def _orders(node: Node, form: EpilogueForm) -> Iterator[tuple[int, ...]]:
    """Orders in which operands may be added: full ones first, and last when that is different."""
    op = node.op
    assert isinstance(op, FusedConv)
    full = tuple(item for item in form.before if op.kinds[item - 1] == "full")
    rest = tuple(item for item in form.before if op.kinds[item - 1] != "full")
    yield (*full, *rest)
    if full and rest:
        yield (*rest, *full)


def _call(node: Node, form: EpilogueForm, order: tuple[int, ...]) -> ConvolutionCall:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, FusedConv) and x is not None

    def described(positions: Sequence[int]) -> tuple[tuple[str, str], ...]:
        found = []
        for position in positions:
            value = node.inputs[1 + position]
            assert value is not None
            found.append((op.kinds[position - 1], value.tensor.dtype.value))
        return tuple(found)

    return ConvolutionCall(
        dtype=x.tensor.dtype.value,
        result=node.outputs[0].tensor.dtype.value,
        strides=(op.strides[0], op.strides[1]),
        pads=(op.pads[0], op.pads[1], op.pads[2], op.pads[3]),
        dilations=(op.dilations[0], op.dilations[1]),
        before=described(order),
        activation=form.activation,
        low=form.low,
        high=form.high,
        after=described(form.after),
    )


def _sizes(node: Node) -> dict[str, int]:
    x, filters = node.inputs[0], node.inputs[1]
    assert x is not None and filters is not None
    n, h, w, c = x.tensor.dims
    _, per_group, r, s = filters.tensor.dims
    _, p, q, k = node.outputs[0].tensor.dims
    numbers = (n, h, w, c, per_group, r, s, p, q, k)
    return dict(zip(ConvolutionCall.SIZES, map(int, numbers)))  # type: ignore[arg-type]


def _emit(
    builder: ProgramBuilder,
    node: Node,
    layer: int,
    call: ConvolutionCall,
    positions: Sequence[int],
    chosen: EngineChoice,
) -> None:
    """The one step; filters are laid out with channels innermost."""
    x, filters = node.inputs[0], node.inputs[1]
    assert x is not None and filters is not None
    k, per_group, r, s = filters.tensor.dims
    weight = builder.weight(
        filters,
        [RecipeStep("transpose", (0,), {"order": [0, 2, 3, 1]})],
        TensorType(filters.tensor.dtype, (k, r, s, per_group)),
    )
    operands = [Operand(builder.slot(x)), Operand(weight)]
    for position in positions:
        value = node.inputs[1 + position]
        assert value is not None
        operands.append(Operand(builder.slot(value)))
    operands.append(Operand(builder.slot(node.outputs[0]), writes=True))
    sizes = list(_sizes(node).values())
    builder.library(
        "cudnn",
        {**call.to_json(), "choice": chosen.to_json(), "sizes": sizes},
        operands,
        sizes,
        workspace_nbytes=chosen.workspace_nbytes,
        layer=layer,
    )


register(CudnnConvolution())
