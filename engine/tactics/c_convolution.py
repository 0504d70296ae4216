"""Convolutions by generated C: direct, and Winograd for 3x3 filters with stride 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.ir.sizes import Dim, evaluate
from engine.ir.types import DType, TensorType
from engine.kernels import convolution, winograd
from engine.kernels.blocked import Split
from engine.kernels.convolution import Convolution
from engine.kernels.epilogue import Epilogue
from engine.kernels.packing import packed_columns_size
from engine.kernels.winograd import Winograd
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.plan.recipes import RecipeStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["CConvolution", "CWinograd"]


def refusal(node: Node, name: str) -> Refusal | None:
    values = [value for value in node.inputs if value is not None] + node.outputs
    if any(value.tensor.dtype is not DType.FLOAT32 for value in values):
        return Refusal(name, "only float32 is generated")
    weight = node.inputs[1]
    if weight is None or weight.constant is None:
        return Refusal(name, "the filters are not constant, so they cannot be packed beforehand")
    return None


def input_strides(op: FusedConv, shape: Sequence[Dim], pixel: Dim) -> tuple[Dim, Dim, Dim, Dim]:
    """Elements between images, rows, columns and channels of the input."""
    _, height, width, channels = op.image(shape)
    if op.input_layout == "NCHW":
        return channels * height * width, width, 1, height * width
    return height * width * pixel, width * pixel, pixel, 1


def operands_and_pixels(
    builder: ProgramBuilder, node: Node, weight: int
) -> tuple[list[tuple[int, Dim]], list[Dim]]:
    """Input, packed filters, epilogue operands and output; and pixel strides.

    The strides are those of the output, then of each epilogue operand.
    """
    op = node.op
    assert isinstance(op, FusedConv) and node.inputs[0] is not None
    slot, offset, _ = builder.location(node.inputs[0])
    operands: list[tuple[int, Dim]] = [(slot, offset), (weight, 0)]
    out_slot, out_offset, out_pixel = builder.location(node.outputs[0])
    pixels: list[Dim] = [out_pixel]
    for kind, value in zip(op.kinds, node.inputs[2:]):
        assert value is not None
        if kind == "full":
            slot, offset, pixel = builder.location(value)
            operands.append((slot, offset))
            pixels.append(pixel)
        else:
            operands.append((builder.slot(value), 0))
            pixels.append(1 if kind == "row" else 0)
    operands.append((out_slot, out_offset))
    return operands, pixels


class CConvolution:
    """Serves FusedConv in float32, any stride, padding, dilation and group."""

    name = "c.convolution"
    kinds = ("FusedConv",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile and order worth measuring."""
        refused = refusal(node, self.name)
        if refused is not None:
            return refused
        op, weight = node.op, node.inputs[1]
        assert isinstance(op, FusedConv) and weight is not None
        images, height, width, outputs = node.outputs[0].tensor.dims
        taps = [int(dim) for dim in weight.tensor.dims]  # type: ignore[arg-type]
        offered = convolution.candidates(
            evaluate(images * height * width, point),
            evaluate(outputs, point) // op.group,
            taps[1] * taps[2] * taps[3],
            epilogue=Epilogue(op.epilogue, op.kinds),
        )
        return [self._candidate(kernel, split) for kernel, split in offered]

    def _candidate(self, kernel: Convolution, split: Split) -> Candidate:
        choice = {**kernel.to_json(), **split.to_json()}
        del choice["epilogue"]
        return Candidate(
            self.name,
            choice,
            lambda b, node, layer: emit_convolution(b, node, layer, kernel, split),
            strided=True,
        )


def emit_convolution(
    builder: ProgramBuilder, node: Node, layer: int, kernel: Convolution, split: Split
) -> None:
    """The one step of a direct convolution."""
    op, source, filters = node.op, node.inputs[0], node.inputs[1]
    assert isinstance(op, FusedConv) and source is not None and filters is not None
    outputs, inputs, high, wide = (int(d) for d in filters.tensor.dims)  # type: ignore[arg-type]
    columns, width = outputs // op.group, kernel.tile.columns
    elements = op.group * packed_columns_size(inputs * high * wide, columns, width)
    weight = builder.weight(
        filters,
        [RecipeStep("pack", (0,), {"name": "filters", "numbers": [width, op.group]})],
        TensorType(DType.FLOAT32, (elements,)),
    )
    operands, pixels = operands_and_pixels(builder, node, weight)
    images, height, breadth, _ = op.image(source.tensor.dims)
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    sizes: list[Dim] = [
        *split.sizes,
        images,
        height,
        breadth,
        op.group,
        inputs,
        columns,
        high,
        wide,
    ]
    sizes += [out_height, out_width, *op.strides, *op.dilations, op.pads[0], op.pads[1]]
    pixel = builder.location(source)[2]
    sizes += [*input_strides(op, source.tensor.dims, pixel), *pixels]
    builder.kernel(kernel, operands, sizes, layer)


class CWinograd:
    """Serves 3x3 convolutions with stride 1 over NHWC by F(2x2, 3x3) and F(4x4, 3x3)."""

    name = "c.winograd"
    specialised = True
    kinds = ("FusedConv",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """Candidates for both tile sizes."""
        refused = refusal(node, self.name)
        if refused is not None:
            return refused
        op, weight = node.op, node.inputs[1]
        assert isinstance(op, FusedConv) and weight is not None
        if weight.tensor.dims[2:] != (3, 3):
            return Refusal(self.name, "the filter is not 3x3")
        if op.strides != (1, 1) or op.dilations != (1, 1):
            return Refusal(self.name, "stride or dilation is not 1")
        if weight.tensor.dims[1] == 1:
            return Refusal(self.name, "one input channel per group leaves no products to save")
        if op.input_layout != "NHWC":
            return Refusal(self.name, "the input is not NHWC")
        images, height, width, outputs = node.outputs[0].tensor.dims
        offered = winograd.ranked_candidates(
            (evaluate(images, point), evaluate(height, point), evaluate(width, point)),
            evaluate(outputs, point) // op.group,
            int(weight.tensor.dims[1]),  # type: ignore[arg-type]
            groups=op.group,
            epilogue=Epilogue(op.epilogue, op.kinds),
        )
        return [self._candidate(kernel, split) for kernel, split in offered]

    def _candidate(self, kernel: Winograd, split: Split) -> Candidate:
        choice = {**kernel.to_json(), **split.to_json()}
        del choice["epilogue"]
        return Candidate(
            self.name,
            choice,
            lambda b, node, layer: emit_winograd(b, node, layer, kernel, split),
            strided=True,
        )


def emit_winograd(
    builder: ProgramBuilder, node: Node, layer: int, kernel: Winograd, split: Split
) -> None:
    """The one step of a Winograd convolution."""
    op, source, filters = node.op, node.inputs[0], node.inputs[1]
    assert isinstance(op, FusedConv) and source is not None and filters is not None
    outputs, inputs, _, _ = (int(d) for d in filters.tensor.dims)  # type: ignore[arg-type]
    width, side = kernel.tile.columns, kernel.outputs_per_side
    columns = outputs // op.group
    elements = op.group * (side + 2) ** 2 * packed_columns_size(inputs, columns, width)
    weight = builder.weight(
        filters,
        [RecipeStep("pack", (0,), {"name": "winograd", "numbers": [width, side, op.group]})],
        TensorType(DType.FLOAT32, (elements,)),
    )
    operands, pixels = operands_and_pixels(builder, node, weight)
    images, height, breadth, _ = op.image(source.tensor.dims)
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    pixel = builder.location(source)[2]
    x_image, x_row, x_column, _ = input_strides(op, source.tensor.dims, pixel)
    sizes: list[Dim] = [*split.sizes, images, height, breadth, op.group, inputs, columns]
    sizes += [out_height, out_width, op.pads[0], op.pads[1]]
    sizes += [x_image, x_row, x_column, *pixels]
    builder.kernel(kernel, operands, sizes, layer)


register(CConvolution())
register(CWinograd())
