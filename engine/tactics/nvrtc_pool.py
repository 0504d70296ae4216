"""Pooling on a GPU by generated CUDA C: windows, and whole maps as reductions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.cuda.pooling import MapReduction, Pooling
from engine.cuda.window_tiles import Problem, bandwidth, ranked_tiles
from engine.cuda.windows import Geometry, Sizes, Tile, narrowed, widest, widest_vector
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, ceildiv, evaluate
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.channels_last import Pool
from engine.plan.device import Parameter, Pointer
from engine.tactics.nvrtc_depthwise import refused
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcMapReduction", "NvrtcPooling"]


def _geometry(op: Pool) -> Geometry:
    return Geometry(
        (op.kernel[0], op.kernel[1]),
        (op.strides[0], op.strides[1]),
        (op.dilations[0], op.dilations[1]),
        (op.pads[0], op.pads[1], op.pads[2], op.pads[3]),
    )


class NvrtcPooling:
    """Serves Pool over any windows."""

    name = "nvrtc.pooling"
    kinds = ("Pool",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring."""
        reason = refused(node, target, self.name)
        if reason is not None:
            return reason
        op, x = node.op, node.inputs[0]
        assert isinstance(op, Pool) and x is not None and isinstance(target, CudaTarget)
        problem = _problem(op, x, node.outputs[0], point)
        most = widest(widest_vector(x.tensor.dtype), [x.tensor.dims[3]])
        return [_candidate(tile) for tile in ranked_tiles(problem, target, most)]


def _problem(op: Pool, x: Value, output: Value, point: Mapping[str, int]) -> Problem:
    images, height, width, channels = (evaluate(dim, point) for dim in x.tensor.dims)
    _, out_height, out_width, _ = (evaluate(dim, point) for dim in output.tensor.dims)
    nbytes = x.tensor.dtype.nbytes
    return Problem(
        _geometry(op),
        images,
        height,
        width,
        out_height,
        out_width,
        channels,
        nbytes,
        weighted=False,
        paired=op.kind == "max" and nbytes == 2,
    )


def _candidate(tile: Tile) -> Candidate:
    return Candidate(
        NvrtcPooling.name,
        tile.to_json(),
        lambda builder, node, layer: _emit(builder, node, layer, tile),
        strided=True,
    )


def _emit(builder: ProgramBuilder, node: Node, layer: int, tile: Tile) -> None:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, Pool) and x is not None
    images, height, width, channels = x.tensor.dims
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    slot, offset, pixel = builder.location(x)
    out_slot, out_offset, out_pixel = builder.location(node.outputs[0])
    tile = narrowed(tile, widest(tile.vector, [channels, offset, pixel, out_offset, out_pixel]))
    sizes = Sizes()
    sizes.add(height=height, width=width, channels=channels)
    sizes.add(out_height=out_height, out_width=out_width, x_pixel=pixel, y_pixel=out_pixel)
    pooling = Pooling(x.tensor.dtype, op.kind, _geometry(op), tile, op.counts_padding)
    parameters: list[Parameter] = [
        Pointer(slot, offset),
        Pointer(out_slot, out_offset, writes=True),
        *sizes.scalars,
    ]
    grid = images * tile.blocks(out_height, out_width, channels)
    builder.launch(pooling.kernel(sizes), (grid,), parameters, layer)


@dataclass(frozen=True, slots=True)
class _Share:
    """How a whole map is reduced: vector, lanes and pixels of a block, blocks for each image."""

    vector: int
    lanes: int
    members: int
    parts: int

    def to_json(self) -> dict[str, int]:
        return {
            "vector": self.vector,
            "lanes": self.lanes,
            "members": self.members,
            "parts": self.parts,
        }


class NvrtcMapReduction:
    """Serves Pool whose one window is the whole map (global pooling), in one or two launches."""

    name = "nvrtc.map_reduction"
    kinds = ("Pool",)
    specialised = True

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """Candidates over vectors, blocks, and shares of the pixels."""
        reason = refused(node, target, self.name)
        if reason is not None:
            return reason
        op, x = node.op, node.inputs[0]
        assert isinstance(op, Pool) and x is not None and isinstance(target, CudaTarget)
        if (
            op.kernel != x.tensor.dims[1:3]
            or any(op.pads)
            or node.outputs[0].tensor.dims[1:3] != (1, 1)
        ):
            return Refusal(self.name, "its window is not the whole map")
        images, channels = (evaluate(x.tensor.dims[axis], point) for axis in (0, 3))
        pixels = op.kernel[0] * op.kernel[1]
        most = widest(widest_vector(x.tensor.dtype), [x.tensor.dims[3]])
        shares = _shares(most, pixels)
        nbytes = x.tensor.dtype.nbytes
        ranked = sorted(
            shares,
            key=lambda share: _seconds(share, images, pixels, channels, nbytes, target),
        )
        return [_map_candidate(share) for share in ranked[:8]]


def _shares(most: int, pixels: int) -> list[_Share]:
    found = []
    for vector in sorted({most, max(most // 2, 1), max(most // 4, 1)}, reverse=True):
        for lanes in (2, 4, 8, 16, 32):
            for members in (8, 16, 32, 64, 128):
                if not 64 <= lanes * members <= 512 or members >= 2 * pixels:
                    continue
                if lanes * members * vector * 4 > 32 << 10:
                    continue
                found += [
                    _Share(vector, lanes, members, parts)
                    for parts in (1, 4, 8, 16, 32, 64)
                    if parts == 1 or pixels >= 4 * parts * members
                ]
    return found or [_Share(most, 32, 2, 1)]


def _seconds(
    share: _Share, images: int, pixels: int, channels: int, nbytes: int, target: CudaTarget
) -> float:
    """The order of candidates: loads in flight hide latency, a second launch costs its start."""
    blocks = images * share.parts * -(-channels // (share.vector * share.lanes))
    steps = -(-pixels // (share.parts * share.members))
    waves = -(-blocks // (4 * target.multiprocessors))
    idle = max(0, 32 // nbytes - share.vector * share.lanes) / 8  # parts of sectors
    chain = (1 + -(-steps // 4)) * 0.6e-6 * waves + share.members.bit_length() * 0.05e-6
    memory = images * pixels * channels * nbytes / bandwidth(target)
    second = 1.3e-6 + share.parts * 0.02e-6 if share.parts > 1 else 0.0
    return (max(memory, chain) + 0.3 * (memory + chain)) * (1 + idle) + second


def _map_candidate(share: _Share) -> Candidate:
    return Candidate(
        NvrtcMapReduction.name,
        share.to_json(),
        lambda builder, node, layer: _emit_map(builder, node, layer, share),
        strided=True,
    )


def _emit_map(builder: ProgramBuilder, node: Node, layer: int, share: _Share) -> None:
    op, x, output = node.op, node.inputs[0], node.outputs[0]
    assert isinstance(op, Pool) and x is not None
    images, _, _, channels = x.tensor.dims
    pixels = op.kernel[0] * op.kernel[1]
    divisor = pixels if op.kind == "average" else 1
    dtype = x.tensor.dtype
    source = builder.location(x)
    target = builder.location(output)
    if share.parts == 1:
        step = MapReduction(
            dtype, dtype, op.kind, share.vector, share.lanes, share.members, divisor
        )
        _reduce(builder, layer, step, source, target, (images, pixels, 1, channels))
        return
    partial = builder.workspace(DType.FLOAT32, images * share.parts * channels)
    middle: tuple[int, Dim, Dim] = (partial, 0, channels)
    first = MapReduction(dtype, DType.FLOAT32, op.kind, share.vector, share.lanes, share.members)
    _reduce(builder, layer, first, source, middle, (images, pixels, share.parts, channels))
    members = 1 << (share.parts - 1).bit_length()
    last = MapReduction(DType.FLOAT32, dtype, op.kind, min(share.vector, 4), 8, members, divisor)
    _reduce(builder, layer, last, middle, target, (images, share.parts, 1, channels))


def _reduce(
    builder: ProgramBuilder,
    layer: int,
    step: MapReduction,
    source: tuple[int, Dim, Dim],
    target: tuple[int, Dim, Dim],
    extents: tuple[Dim, Dim, int, Dim],
) -> None:
    """One launch from one place to another; extents are images, pixels, parts and channels."""
    images, pixels, parts, channels = extents
    vector = widest(step.vector, [channels, *source[1:], *target[1:]])
    step = MapReduction(
        step.dtype, step.out, step.function, vector, step.lanes, step.members, step.divisor
    )
    sizes = Sizes()
    sizes.add(pixels=pixels, parts=parts, channels=channels, x_pixel=source[2], y_pixel=target[2])
    parameters: list[Parameter] = [
        Pointer(source[0], source[1]),
        Pointer(target[0], target[1], writes=True),
        *sizes.scalars,
    ]
    grid = images * parts * ceildiv(channels, vector * step.lanes)
    builder.launch(step.kernel(sizes), (grid,), parameters, layer)


register(NvrtcMapReduction())
register(NvrtcPooling())
