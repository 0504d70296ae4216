"""Resized images on a GPU by generated CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.resize import COORDINATES, ROUNDINGS, Resizing
from engine.cuda.windows import Sizes, widest, widest_vector
from engine.ir.graph import Node
from engine.ir.sizes import ceildiv, floordiv
from engine.lower.builder import ProgramBuilder
from engine.ops.resize_pixels import ResizePixels
from engine.plan.device import Parameter, Pointer
from engine.tactics.nvrtc_depthwise import refused
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["NvrtcResize"]


class NvrtcResize:
    """Serves ResizePixels, nearest and linear."""

    name = "nvrtc.resize"
    kinds = ("ResizePixels",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """Candidates over vectors and blocks."""
        reason = refused(node, target, self.name)
        if reason is not None:
            return reason
        op, x = node.op, node.inputs[0]
        assert isinstance(op, ResizePixels) and x is not None
        if op.coordinates not in COORDINATES or op.mode not in ("nearest", "linear"):
            return Refusal(self.name, f"{op.mode} by {op.coordinates} is not generated")
        if op.rounding not in (*ROUNDINGS, "before_11"):
            return Refusal(self.name, f"the rounding {op.rounding} is not generated")
        most = widest(widest_vector(x.tensor.dtype), [x.tensor.dims[3]])
        return [
            _candidate(vector, threads)
            for vector in dict.fromkeys((most, max(most // 2, 1)))
            for threads in (256, 128)
        ]


def _candidate(vector: int, threads: int) -> Candidate:
    return Candidate(
        NvrtcResize.name,
        {"vector": vector, "threads": threads},
        lambda builder, node, layer: _emit(builder, node, layer, vector, threads),
        strided=True,
    )


def _emit(builder: ProgramBuilder, node: Node, layer: int, vector: int, threads: int) -> None:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, ResizePixels) and x is not None
    images, height, width, channels = x.tensor.dims
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    slot, offset, pixel = builder.location(x)
    out_slot, out_offset, out_pixel = builder.location(node.outputs[0])
    vector = widest(vector, [channels, offset, pixel, out_offset, out_pixel])
    sizes = Sizes()
    sizes.add(height=height, width=width, channels=channels)
    sizes.add(out_height=out_height, out_width=out_width, x_pixel=pixel, y_pixel=out_pixel)
    pairs = zip((height, width), (out_height, out_width), op.scales)
    still = tuple(i for i, (a, b, scale) in enumerate(pairs) if a == b and scale == 1)
    resizing = Resizing(
        x.tensor.dtype,
        op.mode,
        op.coordinates,
        op.rounding,
        (op.scales[0], op.scales[1]),
        still,
        vector,
        threads,
    )
    parameters: list[Parameter] = [
        Pointer(slot, offset),
        Pointer(out_slot, out_offset, writes=True),
        *sizes.scalars,
    ]
    items = out_height * out_width * floordiv(channels, vector)
    builder.launch(resizing.kernel(sizes), (ceildiv(items, threads), images), parameters, layer)


register(NvrtcResize())
