"""The first convolution of an image network on tensor cores by generated CUDA C."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from engine.cuda.stem import FRAGMENT, GROUP, Stem, StemShape, StemTile
from engine.cuda.window_tiles import bandwidth
from engine.cuda.windows import Sizes, divides, widest
from engine.ir.graph import Node
from engine.ir.sizes import Dim, evaluate
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.ops.operator import find
from engine.plan.device import Parameter, Pointer
from engine.plan.operators import operator_to_json
from engine.plan.recipes import RecipeStep
from engine.tactics.nvrtc_depthwise import end_of, ending_operands, refused
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcStem"]

#: More channels are for convolutions that step over channels.
_MOST_CHANNELS = 4
_MOST_STEPS = 32
_KEPT = 10


class NvrtcStem:
    """Serves FusedConv over at most four channels in 16-bit floats, NCHW or NHWC."""

    name = "nvrtc.stem"
    kinds = ("FusedConv",)
    specialised = True

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per block worth measuring."""
        reason = refused(node, target, self.name)
        if reason is not None:
            return reason
        op, x, w = node.op, node.inputs[0], node.inputs[1]
        assert isinstance(op, FusedConv) and x is not None and w is not None
        assert isinstance(target, CudaTarget)
        if w.constant is None:
            return Refusal(self.name, "the filters are not constant, so they cannot be packed")
        if x.tensor.dtype is DType.FLOAT32 or w.tensor.dtype is not x.tensor.dtype:
            return Refusal(self.name, "tensor cores are used for float16 and bfloat16 here")
        if op.group != 1 or op.dilations != (1, 1):
            return Refusal(self.name, "it has groups or dilations")
        shape = _shape(op, node)
        if shape.channels > _MOST_CHANNELS:
            return Refusal(self.name, f"{shape.channels} channels, expected {_MOST_CHANNELS}")
        if shape.steps > _MOST_STEPS:
            return Refusal(self.name, f"a filter of {shape.kernel} takes too many steps")
        dims = [evaluate(dim, point) for dim in node.outputs[0].tensor.dims]
        found = {
            tile: _seconds(Stem(x.tensor.dtype, shape, tile, end_of(op, node)), dims, target)
            for tile in _tiles(dims[2], shape)
            if _fits(Stem(x.tensor.dtype, shape, tile, end_of(op, node)), target)
        }
        if not found:
            return Refusal(self.name, "no block's patch and filters fit into shared memory")
        ranked = sorted(found, key=lambda tile: (found[tile], str(tile)))
        return [_candidate(tile) for tile in ranked[:_KEPT]]


def _shape(op: FusedConv, node: Node) -> StemShape:
    assert node.inputs[1] is not None
    outputs, channels, high, wide = (int(d) for d in node.inputs[1].tensor.dims)  # type: ignore[arg-type]
    return StemShape(
        channels,
        outputs,
        (high, wide),
        (op.strides[0], op.strides[1]),
        (op.pads[0], op.pads[1]),
    )


def _tiles(out_width: int, shape: StemShape) -> list[StemTile]:
    fragments = -(-out_width // FRAGMENT)
    across = {item for item in (2, 4, 7, 8, fragments) if item <= min(fragments, 8)} or {1}
    groups = (1, 2) if shape.outputs > GROUP else (1,)
    found = []
    for wide, rows, share, group in itertools.product(
        sorted(across), (1, 2, 4, 8), (1, 2, 4), groups
    ):
        wasted = -(-fragments // wide) * wide / fragments
        if wide * rows % share == 0 and 2 <= wide * rows // share <= 16 and wasted <= 1.35:
            found.append(StemTile(wide, rows, share, group))
    return found


def _fits(stem: Stem, target: CudaTarget) -> bool:
    """Whether shared memory and, at a rough count, registers suffice."""
    # The assembler gives out registers as if warps came in fours.
    threads = -(-stem.tile.warps // 4) * 128
    return stem.shared_nbytes <= target.shared_nbytes and _registers(stem) * threads <= 65536


def _registers(stem: Stem) -> int:
    """About what a thread needs: the accumulators are most of it."""
    return 30 + 25 * stem.tile.per_warp * stem.tile.groups


def _seconds(stem: Stem, out: Sequence[int], target: CudaTarget) -> float:
    """Memory, tensor cores and shared memory each bound the time; blocks come in waves."""
    tile, shape = stem.tile, stem.shape
    blocks = out[0] * _whole(tile.blocks(out[1], out[2]))
    fragments = tile.across * tile.rows
    columns = stem.passes * tile.groups * 4
    products = fragments * columns * shape.steps * 1.7
    # Cycles of shared memory: filters are read once per warp and step, words of A per fragment.
    reads = stem.passes * shape.steps * (tile.warps * tile.groups * 8 + fragments * 4)
    filling = stem.copy_words * shape.copies / 8 + stem.filter_elements / 32
    resident = min(
        max(1, 65536 // (_registers(stem) * 32 * tile.warps)),
        max(1, target.shared_nbytes // stem.shared_nbytes),
        4,
    )
    waves = -(-blocks // target.multiprocessors)
    cycles = max(products, reads) + filling
    exposed = 2400 / min(resident, waves)
    pixels = out[0] * out[1] * out[2]
    image = pixels * shape.strides[0] * shape.strides[1] * shape.channels
    memory = 2 * (pixels * shape.outputs + image) / bandwidth(target)
    return 1.5e-6 + max(memory, waves * (cycles + exposed) / 1.6e9) + 0.2 * memory


def _whole(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


def _candidate(tile: StemTile) -> Candidate:
    return Candidate(
        NvrtcStem.name,
        tile.to_json(),
        lambda builder, node, layer: _emit(builder, node, layer, tile),
        strided=True,
    )


def _recipe(stem: Stem) -> list[RecipeStep]:
    """Filters [K, C, R, S] as fragments of B; `engine.cuda.stem` says in which order."""
    shape, groups = stem.shape, stem.tile.groups
    passes, steps = stem.passes, shape.steps
    outputs = passes * groups * GROUP
    wide = 2 * shape.pairs_per_row
    around = (0, 0, 0, shape.lead, outputs - shape.outputs, 0, 0)
    columns = (*around, wide - shape.lead - shape.kernel[1])
    fragments = (passes, groups, 4, 2, 2, 2, steps, 2, 4, 2)
    return [
        _padding(0, columns),
        RecipeStep("reshape", (1,), {"shape": [outputs, 2 * shape.pairs]}),
        _padding(2, (0, 0, 0, 16 * steps - 2 * shape.pairs)),
        RecipeStep("reshape", (3,), {"shape": list(fragments)}),
        # Pass, step, group and pair of fragments; lane (column, inner); fragment, half, element.
        RecipeStep("transpose", (4,), {"order": [0, 6, 1, 3, 2, 5, 8, 4, 7, 9]}),
        RecipeStep("reshape", (5,), {"shape": [stem.filter_elements]}),
    ]


def _padding(value: int, pads: tuple[int, ...]) -> RecipeStep:
    operator = find("", "Pad", 2).from_attributes({"pads": pads})
    return RecipeStep("meaning", (value,), {"operator": operator_to_json(operator)})


def _emit(builder: ProgramBuilder, node: Node, layer: int, tile: StemTile) -> None:
    op, x, w = node.op, node.inputs[0], node.inputs[1]
    assert isinstance(op, FusedConv) and x is not None and w is not None
    images, height, width, channels = op.image(x.tensor.dims)
    _, out_height, out_width, outputs = node.outputs[0].tensor.dims
    slot, offset, pixel = builder.location(x)
    out_slot, out_offset, out_pixel = builder.location(node.outputs[0])
    pointers, pixels, aligned = ending_operands(builder, node, op.kinds)
    sizes = Sizes()
    sizes.add(height=height, width=width, out_height=out_height, out_width=out_width)
    planar = op.input_layout == "NCHW"
    if planar:
        area = height * width
        sizes.add(x_image=channels * area, x_channel=area, x_row=width, x_column=1)
    else:
        sizes.add(x_image=height * width * pixel, x_channel=1, x_row=width * pixel, x_column=pixel)
    sizes.add(y_pixel=out_pixel, **pixels)
    stem = Stem(
        x.tensor.dtype,
        _shape(op, node),
        tile,
        end_of(op, node),
        widest(8, [outputs, out_offset, out_pixel, *aligned]),
        planar and divides(8, width) and divides(8, offset),
    )
    filters = builder.weight(w, _recipe(stem), TensorType(w.tensor.dtype, (stem.filter_elements,)))
    parameters: list[Parameter] = [
        Pointer(slot, offset),
        Pointer(filters),
        *pointers,
        Pointer(out_slot, out_offset, writes=True),
        *sizes.scalars,
    ]
    grid = images * tile.blocks(out_height, out_width)
    builder.launch(stem.kernel(sizes), (grid,), parameters, layer)


register(NvrtcStem())
