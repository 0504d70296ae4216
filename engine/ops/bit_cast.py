"""BitCast: the bits of elements read as another type of the same width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import Operator, register, tensor

__all__ = ["BitCast", "bit_width"]

_NARROW = {
    DType.INT2: 2,
    DType.UINT2: 2,
    DType.INT4: 4,
    DType.UINT4: 4,
    DType.FLOAT4E2M1: 4,
    DType.FLOAT6E2M3: 6,
    DType.FLOAT6E3M2: 6,
}


def bit_width(dtype: DType) -> int:
    """How many bits an element has, whatever it takes in memory."""
    return _NARROW.get(dtype, 8 * dtype.nbytes)


@register("BitCast", since=26)
@dataclass(frozen=True, slots=True)
class BitCast(Operator):
    """The same bits as elements of type ``to``, which has the same width."""

    to: int

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The same shape with the new type."""
        given = tensor(data, "input")
        return [TensorType(self._target(given.dtype), given.shape)]

    def meaning(self, data: Array, /) -> Array:
        """A view; types under 8 bits lie in bytes, sign-extended when they are signed integers."""
        target = self._target(DType.of(data.dtype))
        bits = bit_width(target)
        if bits >= 8:
            whole = np.ascontiguousarray(data).view(target.numpy)
            return whole.reshape(data.shape)
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(data.shape) & ((1 << bits) - 1)
        if target.is_integer:
            sign = 1 << (bits - 1) if target.value.startswith("int") else 0
            return ((raw.astype(np.int8) ^ sign) - sign).astype(target.numpy)
        return raw.view(target.numpy)

    def _target(self, source: DType) -> DType:
        target = dtype_of_code(self.to)
        widths = {dtype: bit_width(dtype) for dtype in (source, target)}
        if DType.STRING in widths or widths[source] != widths[target]:
            raise ValueError(f"{source.value} cannot be read as {target.value}, another width")
        return target
