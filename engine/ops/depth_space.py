"""DepthToSpace and SpaceToDepth: blocks of pixels moved out of and into the channels (NCHW)."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ir.sizes import floordiv
from engine.ir.types import Array, Operand, Shape, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import unknown_shape

__all__ = ["DepthToSpace", "SpaceToDepth"]


def _checked(data: TensorType, block: int, mode: str) -> Shape:
    """The NCHW shape, of unknown sizes while it is not known."""
    if block < 1 or mode not in ("DCR", "CRD"):
        raise ValueError(f"blocksize {block}, mode {mode!r}: expected a size >= 1 and DCR or CRD")
    shape = unknown_shape(4) if data.shape is None else data.shape
    if len(shape) != 4:
        raise ValueError(f"the input has rank {len(shape)}, expected 4 axes NCHW")
    return shape


@register("DepthToSpace", since=1)
@dataclass(frozen=True, slots=True)
class DepthToSpace(Operator):
    """Channels spread into blocks: [N, C, H, W] to [N, C / b**2, H * b, W * b].

    In mode DCR the block's row and column are the outermost part of the channel, in CRD the
    innermost.
    """

    blocksize: int
    mode: str = "DCR"

    def infer(self, data: Operand, /) -> list[TensorType]:
        """Channels divided, height and width multiplied."""
        given, block = tensor(data, "input"), self.blocksize
        shape = _checked(given, block, self.mode)
        if given.shape is None:
            return [TensorType(given.dtype, shape)]
        batch, channels, height, width = shape
        if isinstance(channels, int) and channels % block**2:
            raise ValueError(f"{channels} channels do not divide into blocks of {block}x{block}")
        depth = floordiv(channels, block**2)
        return [TensorType(given.dtype, (batch, depth, height * block, width * block))]

    def meaning(self, data: Array, /) -> Array:
        """A transposition between two reshapes."""
        (batch, channels, height, width), block = data.shape, self.blocksize
        depth = channels // block**2
        if self.mode == "DCR":
            blocks = data.reshape(batch, block, block, depth, height, width)
            moved = blocks.transpose(0, 3, 4, 1, 5, 2)
        else:
            blocks = data.reshape(batch, depth, block, block, height, width)
            moved = blocks.transpose(0, 1, 4, 2, 5, 3)
        return moved.reshape(batch, depth, height * block, width * block)


@register("SpaceToDepth", since=1)
@dataclass(frozen=True, slots=True)
class SpaceToDepth(Operator):
    """Blocks gathered into channels: [N, C, H, W] to [N, C * b**2, H / b, W / b].

    The inverse of DepthToSpace in the same mode.
    """

    blocksize: int
    mode: str = "DCR"

    def infer(self, data: Operand, /) -> list[TensorType]:
        """Channels multiplied, height and width divided."""
        given, block = tensor(data, "input"), self.blocksize
        shape = _checked(given, block, self.mode)
        if given.shape is None:
            return [TensorType(given.dtype, shape)]
        batch, channels, height, width = shape
        if any(isinstance(size, int) and size % block for size in (height, width)):
            raise ValueError(f"{height}x{width} pixels do not divide into {block}x{block} blocks")
        rows, columns = floordiv(height, block), floordiv(width, block)
        return [TensorType(given.dtype, (batch, channels * block**2, rows, columns))]

    def meaning(self, data: Array, /) -> Array:
        """A transposition between two reshapes."""
        (batch, channels, height, width), block = data.shape, self.blocksize
        rows, columns = height // block, width // block
        blocks = data.reshape(batch, channels, rows, block, columns, block)
        order = (0, 3, 5, 1, 2, 4) if self.mode == "DCR" else (0, 1, 3, 5, 2, 4)
        return blocks.transpose(order).reshape(batch, channels * block**2, rows, columns)
