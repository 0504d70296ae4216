"""Blocks of pixels moved out of the channels, over NHWC; made by the layout pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import floordiv
from engine.ir.types import Array, Operand, TensorType, Type
from engine.ops.operator import DOMAIN, Operator, register

__all__ = ["BlocksToPixels"]


@register("BlocksToPixels", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class BlocksToPixels(Operator):
    """Channels spread into blocks of pixels: [N, H, W, C] to [N, H * b, W * b, C / b**2].

    In mode DCR the block's row and column are the outermost part of the channel, in CRD the
    innermost (ONNX DepthToSpace over NHWC).
    """

    block: int = 1
    mode: str = "DCR"

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        (x,) = operands
        assert x is not None
        images, height, width, channels = x.tensor.dims
        if self.block < 1 or self.mode not in ("DCR", "CRD"):
            raise ValueError(f"block {self.block}, mode {self.mode!r}: expected >= 1, DCR or CRD")
        if isinstance(channels, int) and channels % self.block**2:
            raise ValueError(f"{channels} channels do not divide into {self.block}x{self.block}")
        depth = floordiv(channels, self.block**2)
        return [TensorType(x.dtype, (images, height * self.block, width * self.block, depth))]

    def meaning(self, *inputs: Array) -> Array:
        (images, height, width, channels), block = inputs[0].shape, self.block
        depth = channels // block**2
        if self.mode == "DCR":
            parts = inputs[0].reshape(images, height, width, block, block, depth)
            moved = parts.transpose(0, 1, 3, 2, 4, 5)
        else:
            parts = inputs[0].reshape(images, height, width, depth, block, block)
            moved = parts.transpose(0, 1, 4, 2, 5, 3)
        shape = (images, height * block, width * block, depth)
        return np.ascontiguousarray(moved).reshape(shape)
