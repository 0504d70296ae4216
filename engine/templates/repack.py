"""Space to depth in Triton: an image of few channels as one of many, for a convolution to read.

A block of ``down`` x ``across`` input pixels becomes one pixel with all their channels, padded to a
multiple of 16 bytes. Blocks begin at the convolution's padding, and zeros outside the image are
written, so that a convolution whose stride is the block becomes one with stride 1 and no padding.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.kernel import DeviceKernel
from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.ir.types import DType

__all__ = ["Repack", "repack_kernel"]

_WARPS = 4
_LANES = 64
#: Elements that one block writes: 16 per thread, so that their addresses stay in registers.
_ELEMENTS = 2048

_SOURCE = """
import triton
import triton.language as tl


@triton.jit
def repack(
    x, y, images, high, wide, height, width, image_stride, row_stride, column_stride,
    channel_stride,
    PIXELS: tl.constexpr,
    LANES: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    C: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    WAITS: tl.constexpr,
):
    if WAITS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    exists = pixel < images * high * wide
    image = pixel // (high * wide)
    i = pixel // wide % high
    j = pixel % wide
    if CHANNELS_FIRST:
        c = lane // (DOWN * ACROSS)
        r = lane // ACROSS % DOWN
        s = lane % ACROSS
    else:
        c = lane % C
        r = lane // (C * ACROSS)
        s = lane // C % ACROSS
    row = i[:, None] * DOWN + r[None, :] - TOP
    column = j[:, None] * ACROSS + s[None, :] - LEFT
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside &= (lane < C * DOWN * ACROSS)[None, :] & exists[:, None]
    places = x + image.to(tl.int64)[:, None] * image_stride
    places += row * row_stride + column * column_stride + c[None, :] * channel_stride
    value = tl.load(places, mask=inside, other=0.0)
    target = y + pixel.to(tl.int64)[:, None] * DEPTH + lane[None, :]
    tl.store(target, value, mask=exists[:, None] & (lane < DEPTH)[None, :])
"""


@dataclass(frozen=True, slots=True)
class Repack:
    """How pixels become channels: blocks, channels, padding, channels of the result.

    ``channels_first`` orders the result's channels as (channel, row, column), else as (row,
    column, channel): the first where the input is NCHW, so that neighbours are read together.
    """

    block: tuple[int, int]
    channels: int
    pads: tuple[int, int]
    depth: int
    channels_first: bool

    @property
    def pixels(self) -> int:
        """Pixels of the result that one block writes."""
        return _ELEMENTS // self.lanes

    @property
    def lanes(self) -> int:
        """Channels of the result that one block writes."""
        return min(_LANES, 1 << (self.depth - 1).bit_length())


def repack_kernel(repack: Repack, dtype: DType, *, waits: bool) -> DeviceKernel:
    """The kernel for an element type; a grid of (blocks of pixels, blocks of lanes)."""
    element = ELEMENT_NAMES[dtype]
    sizes = ("images", "high", "wide", "height", "width")
    strides = ("image_stride", "row_stride", "column_stride", "channel_stride")
    return DeviceKernel(
        compiler="triton",
        entry="repack",
        source=_SOURCE.lstrip("\n"),
        threads=32 * _WARPS,
        signature=(
            ("x", f"*{element}"),
            ("y", f"*{element}"),
            *((name, "i32") for name in (*sizes, *strides)),
        ),
        constants=(
            ("PIXELS", repack.pixels),
            ("LANES", repack.lanes),
            ("DOWN", repack.block[0]),
            ("ACROSS", repack.block[1]),
            ("C", repack.channels),
            ("TOP", repack.pads[0]),
            ("LEFT", repack.pads[1]),
            ("DEPTH", repack.depth),
            ("CHANNELS_FIRST", repack.channels_first),
            ("WAITS", waits),
        ),
        aligned=("y",),
        stages=1,
        waits=waits,
    )
