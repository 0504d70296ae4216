"""DLPack capsules of arrays on a GPU, read and made through ctypes (DLPack 0.8 layout)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import FeedError
from engine.ir.types import DType

__all__ = ["CUDA", "CUDA_MANAGED", "Tensor", "make_capsule", "read_capsule"]

#: Device types.
CUDA, CUDA_MANAGED = 2, 13

_NAME = b"dltensor"
#: Type code and bits of each element type.
_CODES: dict[DType, tuple[int, int]] = {
    DType.BOOL: (6, 8),
    DType.BFLOAT16: (4, 16),
    DType.COMPLEX64: (5, 64),
    DType.COMPLEX128: (5, 128),
    DType.FLOAT8E4M3FN: (10, 8),
    DType.FLOAT8E4M3FNUZ: (11, 8),
    DType.FLOAT8E5M2: (12, 8),
    DType.FLOAT8E5M2FNUZ: (13, 8),
    DType.FLOAT8E8M0: (14, 8),
}
for _bits in (8, 16, 32, 64):
    _CODES[DType(f"int{_bits}")] = (0, _bits)
    _CODES[DType(f"uint{_bits}")] = (1, _bits)
    if _bits > 8:
        _CODES[DType(f"float{_bits}")] = (2, _bits)
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("axes", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a capsule says: ``strides`` are in elements, None for C order."""

    address: int
    device: tuple[int, int]
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


def _pythonapi(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function of the interpreter with types of our own, apart from what others set on it."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_pointer_of = _pythonapi("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_raw_pointer_of = _pythonapi(
    "PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
)
_is_valid = _pythonapi("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_new_capsule = _pythonapi(
    "PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)


def read_capsule(capsule: Any, name: str) -> Tensor:
    """What lies in a capsule, which stays unused: it frees itself when it is dropped.

    Raises FeedError for an element type that the engine does not have.
    """
    tensor = _Managed.from_address(_pointer_of(capsule, _NAME)).tensor
    code = (tensor.dtype.code, tensor.dtype.bits)
    if tensor.dtype.lanes != 1 or code not in _DTYPES:
        raise FeedError(
            f"{name} has the DLPack type code {code[0]} with {code[1]} bits, which the engine does "
            "not have; convert the array"
        )
    shape = tuple(tensor.shape[axis] for axis in range(tensor.axes))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[axis] for axis in range(tensor.axes))
    return Tensor(
        (tensor.data or 0) + tensor.byte_offset,
        (tensor.device.kind, tensor.device.index),
        _DTYPES[code],
        shape,
        strides,
    )


#: What was handed out, by address of its structure: everything that must live as long.
_handed: dict[int, tuple[Any, ...]] = {}


def _forget(managed: Any) -> None:
    _handed.pop(ctypes.addressof(managed.contents), None)


def _forget_unused(capsule: int) -> None:
    """A capsule that nobody took is being destroyed."""
    if _is_valid(capsule, _NAME):
        _handed.pop(_raw_pointer_of(capsule, _NAME), None)


_deleter = _Deleter(_forget)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_forget_unused)
# Whoever took a capsule may call these when the interpreter is going down: they are never freed.
for _callback in (_deleter, _destructor):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_callback))


def make_capsule(
    address: int, index: int, dtype: DType, shape: tuple[int, ...], owner: object
) -> Any:
    """A capsule of a C-contiguous tensor on a GPU; ``owner`` lives until its taker frees it."""
    if dtype not in _CODES:
        raise BufferError(f"DLPack has no code for {dtype.value}")
    code, bits = _CODES[dtype]
    axes = len(shape)
    sizes = (ctypes.c_int64 * max(axes, 1))(*shape)
    steps = (ctypes.c_int64 * max(axes, 1))()
    step = 1
    for axis in reversed(range(axes)):
        steps[axis] = step
        step *= max(shape[axis], 1)
    managed = _Managed()
    managed.tensor = _Tensor(
        address,
        _Device(CUDA, index),
        axes,
        _DataType(code, bits, 1),
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64)),
        0,
    )
    managed.deleter = _deleter
    place = ctypes.addressof(managed)
    _handed[place] = (managed, sizes, steps, owner)
    return _new_capsule(place, _NAME, ctypes.cast(_destructor, ctypes.c_void_p))
