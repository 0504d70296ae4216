"""Types of values: element types, tensors with symbolic shapes, sequences, optionals, maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np

from engine.ir.sizes import Dim, product, symbols

__all__ = [
    "Array",
    "DType",
    "Dim",
    "MapType",
    "Operand",
    "OptionalType",
    "SequenceType",
    "Shape",
    "TensorType",
    "Type",
    "UnknownSize",
    "is_bound",
]

Array = np.ndarray[Any, Any]


class DType(Enum):
    """An element type; the value is its name in plans, texts and lockfiles."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8E4M3FN = "float8e4m3fn"
    FLOAT8E4M3FNUZ = "float8e4m3fnuz"
    FLOAT8E5M2 = "float8e5m2"
    FLOAT8E5M2FNUZ = "float8e5m2fnuz"
    FLOAT8E8M0 = "float8e8m0"
    FLOAT6E2M3 = "float6e2m3"
    FLOAT6E3M2 = "float6e3m2"
    FLOAT4E2M1 = "float4e2m1"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"
    UINT64 = "uint64"
    UINT32 = "uint32"
    UINT16 = "uint16"
    UINT8 = "uint8"
    UINT4 = "uint4"
    UINT2 = "uint2"
    BOOL = "bool"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"
    STRING = "string"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of an array of this type (strings are Python objects)."""
        return _NUMPY[self]

    @property
    def nbytes(self) -> int:
        """Bytes an element takes in memory (types under 8 bits take a byte each)."""
        return _NUMPY[self].itemsize

    @property
    def is_float(self) -> bool:
        """Whether this is a real floating point type."""
        return self.value.startswith(("float", "bfloat"))

    @property
    def is_integer(self) -> bool:
        """Whether this is a signed or unsigned integer type."""
        return self.value.startswith(("int", "uint"))

    @property
    def is_complex(self) -> bool:
        """Whether this is a complex type."""
        return self.value.startswith("complex")

    @classmethod
    def of(cls, dtype: np.dtype[Any] | type) -> DType:
        """The type of a NumPy dtype; TypeError for one that ONNX does not have."""
        dtype = np.dtype(dtype)
        found = _FROM_NUMPY.get(dtype)
        if found is None and dtype.kind in "OUST":
            return cls.STRING
        if found is None:
            raise TypeError(f"NumPy dtype {dtype} has no counterpart in ONNX")
        return found


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DType.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.FLOAT8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.FLOAT8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.FLOAT8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.FLOAT8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.FLOAT6E2M3: np.dtype(ml_dtypes.float6_e2m3fn),
    DType.FLOAT6E3M2: np.dtype(ml_dtypes.float6_e3m2fn),
    DType.FLOAT4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    DType.INT4: np.dtype(ml_dtypes.int4),
    DType.INT2: np.dtype(ml_dtypes.int2),
    DType.UINT4: np.dtype(ml_dtypes.uint4),
    DType.UINT2: np.dtype(ml_dtypes.uint2),
    DType.STRING: np.dtype(object),
}
_NUMPY.update({d: np.dtype(d.value) for d in DType if d not in _NUMPY})
_FROM_NUMPY = {numpy: dtype for dtype, numpy in _NUMPY.items()}

Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class UnknownSize:
    """In an operator's answer: a size known only after it has run, with a bound if there is one."""

    bound: Dim | None = None


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor: element type and shape; ``shape`` is None while the rank is unknown."""

    dtype: DType
    shape: Shape | None

    @property
    def dims(self) -> Shape:
        """The shape, for a tensor whose rank must be known; ValueError otherwise."""
        if self.shape is None:
            raise ValueError("the rank of this tensor is not known")
        return self.shape

    @property
    def rank(self) -> int:
        """The number of axes; ValueError while it is unknown."""
        return len(self.dims)

    @property
    def elements(self) -> Dim:
        """The number of elements."""
        return product(self.dims)

    def __str__(self) -> str:
        shape = "?" if self.shape is None else ", ".join(str(dim) for dim in self.shape)
        return f"{self.dtype.value}[{shape}]"


@dataclass(frozen=True, slots=True)
class SequenceType:
    """A list of values of one type."""

    element: Type

    def __str__(self) -> str:
        return f"sequence({self.element})"


@dataclass(frozen=True, slots=True)
class OptionalType:
    """A value that may be absent."""

    element: Type

    def __str__(self) -> str:
        return f"optional({self.element})"


@dataclass(frozen=True, slots=True)
class MapType:
    """A dictionary from integers or strings to values (ai.onnx.ml)."""

    key: DType
    value: Type

    def __str__(self) -> str:
        return f"map({self.key.value}, {self.value})"


Type = TensorType | SequenceType | OptionalType | MapType


@dataclass(frozen=True, slots=True)
class Operand:
    """What an operator's shape rule may know of an input.

    ``value`` is the array when the input is a constant. ``content`` is an object array of sizes
    when the input is a small integer tensor computed from shapes, so that rules such as Reshape's
    can follow symbolic dimensions.
    """

    type: Type
    value: Array | None = field(default=None, compare=False)
    content: Array | None = field(default=None, compare=False)

    @property
    def tensor(self) -> TensorType:
        """The type, for an input that must be a tensor."""
        if not isinstance(self.type, TensorType):
            raise ValueError(f"a tensor was expected, found {self.type}")
        return self.type

    @property
    def dtype(self) -> DType:
        """The element type of a tensor input."""
        return self.tensor.dtype

    @property
    def shape(self) -> Shape | None:
        """The shape of a tensor input, None while its rank is unknown."""
        return self.tensor.shape

    @property
    def sizes(self) -> list[Dim] | None:
        """The elements of a 1-D (or scalar) integer input as sizes, if they are known."""
        if self.value is not None:
            return [int(item) for item in np.asarray(self.value).reshape(-1)]
        if self.content is not None:
            return list(self.content.reshape(-1))
        return None


def is_bound(kind: Type) -> bool:
    """Whether the shapes of the inputs alone settle this type's size."""
    if not isinstance(kind, TensorType) or kind.shape is None:
        return False
    return not any(name.startswith("?") for dim in kind.shape for name in symbols(dim))
