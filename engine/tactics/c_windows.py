"""Depthwise convolutions and pooling over NHWC by generated C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.ir.sizes import Dim
from engine.ir.types import DType, TensorType
from engine.kernels.depthwise import Depthwise
from engine.kernels.epilogue import Epilogue
from engine.kernels.pooling import Pooling
from engine.lower.builder import ProgramBuilder
from engine.ops.channels_last import Pool
from engine.ops.fused import FusedConv
from engine.plan.recipes import RecipeStep
from engine.tactics.c_convolution import input_strides, operands_and_pixels, refusal
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["CDepthwise", "CPooling"]


class CDepthwise:
    """Serves FusedConv with one filter per channel."""

    name = "c.depthwise"
    kinds = ("FusedConv",)
    specialised = True

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate."""
        refused = refusal(node, self.name)
        op, x, w = node.op, node.inputs[0], node.inputs[1]
        assert isinstance(op, FusedConv) and x is not None and w is not None
        if refused is not None:
            return refused
        outputs, inputs, high, wide = w.tensor.dims
        if op.group != outputs or inputs != 1 or op.input_layout != "NHWC":
            return Refusal(self.name, "it is not one filter per channel over NHWC")
        if not isinstance(high, int) or not isinstance(wide, int) or max(high, wide) > 31:
            return Refusal(self.name, "the filter is larger than 31")
        kernel = Depthwise(high, wide, Epilogue(op.epilogue, op.kinds))
        emit = lambda b, n, layer: emit_depthwise(b, n, layer, kernel)  # noqa: E731
        return [Candidate(self.name, {}, emit, strided=True)]


def emit_depthwise(builder: ProgramBuilder, node: Node, layer: int, kernel: Depthwise) -> None:
    """The one step; filters are stored tap by tap."""
    op, x, w = node.op, node.inputs[0], node.inputs[1]
    assert isinstance(op, FusedConv) and x is not None and w is not None
    channels, _, high, wide = (int(d) for d in w.tensor.dims)  # type: ignore[arg-type]
    recipe = [
        RecipeStep("reshape", (0,), {"shape": [channels, high * wide]}),
        RecipeStep("transpose", (1,), {"order": [1, 0]}),
    ]
    weight = builder.weight(w, recipe, TensorType(DType.FLOAT32, (high * wide, channels)))
    operands, pixels = operands_and_pixels(builder, node, weight)
    images, height, width, _ = op.image(x.tensor.dims)
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    sizes: list[Dim] = [images, height, width, channels, high, wide, out_height, out_width]
    sizes += [*op.strides, *op.dilations, *op.pads]
    pixel = builder.location(x)[2]
    sizes += [*input_strides(op, x.tensor.dims, pixel), *pixels]
    builder.kernel(kernel, operands, sizes, layer)


class CPooling:
    """Serves Pool in float32."""

    name = "c.pooling"
    kinds = ("Pool",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate."""
        op, x = node.op, node.inputs[0]
        assert isinstance(op, Pool) and x is not None
        if x.tensor.dtype is not DType.FLOAT32:
            return Refusal(self.name, "only float32 is generated")
        kernel = Pooling(op.kind, op.counts_padding)
        emit = lambda b, n, layer: emit_pooling(b, n, layer, kernel)  # noqa: E731
        return [Candidate(self.name, {}, emit, strided=True)]


def emit_pooling(builder: ProgramBuilder, node: Node, layer: int, kernel: Pooling) -> None:
    """The one step of a pooling."""
    op, x = node.op, node.inputs[0]
    assert isinstance(op, Pool) and x is not None
    images, height, width, channels = x.tensor.dims
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    sizes: list[Dim] = [images, height, width, channels, *op.kernel, out_height, out_width]
    sizes += [*op.strides, *op.dilations, *op.pads]
    slot, offset, pixel = builder.location(x)
    out_slot, out_offset, out_pixel = builder.location(node.outputs[0])
    sizes += [height * width * pixel, width * pixel, pixel, 1, out_pixel]
    operands: list[tuple[int, Dim]] = [(slot, offset), (out_slot, out_offset)]
    builder.kernel(kernel, operands, sizes, layer)


register(CDepthwise())
register(CPooling())
