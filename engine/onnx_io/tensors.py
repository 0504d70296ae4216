"""ONNX tensors and types to ours and back; external data is mapped, never read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engine.errors import InvalidModelError, MissingDataError
from engine.ir.sizes import symbol
from engine.ir.types import (
    Array,
    Dim,
    DType,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
)

__all__ = ["array_of", "dtype_of", "proto_dtype", "type_of"]

_DTYPES: dict[int, DType] = {
    TensorProto.FLOAT: DType.FLOAT32,
    TensorProto.DOUBLE: DType.FLOAT64,
    TensorProto.FLOAT16: DType.FLOAT16,
    TensorProto.BFLOAT16: DType.BFLOAT16,
    TensorProto.FLOAT8E4M3FN: DType.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ: DType.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2: DType.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ: DType.FLOAT8E5M2FNUZ,
    TensorProto.FLOAT4E2M1: DType.FLOAT4E2M1,
    TensorProto.INT64: DType.INT64,
    TensorProto.INT32: DType.INT32,
    TensorProto.INT16: DType.INT16,
    TensorProto.INT8: DType.INT8,
    TensorProto.INT4: DType.INT4,
    TensorProto.UINT64: DType.UINT64,
    TensorProto.UINT32: DType.UINT32,
    TensorProto.UINT16: DType.UINT16,
    TensorProto.UINT8: DType.UINT8,
    TensorProto.UINT4: DType.UINT4,
    TensorProto.BOOL: DType.BOOL,
    TensorProto.COMPLEX64: DType.COMPLEX64,
    TensorProto.COMPLEX128: DType.COMPLEX128,
    TensorProto.STRING: DType.STRING,
}
for _name in ("FLOAT8E8M0", "FLOAT6E2M3", "FLOAT6E3M2", "INT2", "UINT2"):
    if hasattr(TensorProto, _name):  # element types newer than the oldest onnx we accept
        _DTYPES[getattr(TensorProto, _name)] = DType[_name]
_PROTO = {dtype: code for code, dtype in _DTYPES.items()}


def dtype_of(code: int, where: str) -> DType:
    """The element type of an ONNX type code; InvalidModelError for a code ONNX does not have."""
    if code not in _DTYPES:
        raise InvalidModelError(f"{where} has the unknown ONNX element type {code}")
    return _DTYPES[code]


def proto_dtype(dtype: DType) -> int:
    """The ONNX type code of an element type."""
    return _PROTO[dtype]


def _dim(proto: Any, where: str, axis: int) -> Dim:
    if proto.HasField("dim_value"):
        if proto.dim_value < 0:
            raise InvalidModelError(f"{where} has the negative size {proto.dim_value}")
        return int(proto.dim_value)
    if proto.dim_param.strip("?"):
        return symbol(proto.dim_param.lstrip("?"))  # "?" marks sizes that only a run tells
    return symbol(f"{where}_{axis}")


def type_of(proto: onnx.TypeProto, where: str) -> Type | None:
    """A declared ONNX type, None when there is none; unnamed sizes get a name of their own."""
    kind = proto.WhichOneof("value")
    if kind is None:
        return None
    if kind in ("tensor_type", "sparse_tensor_type"):
        inner = getattr(proto, kind)
        dtype = dtype_of(inner.elem_type, where)
        if not inner.HasField("shape"):
            return TensorType(dtype, None)
        return TensorType(
            dtype, tuple(_dim(dim, where, axis) for axis, dim in enumerate(inner.shape.dim))
        )
    if kind == "sequence_type":
        element = type_of(proto.sequence_type.elem_type, where)
        return SequenceType(element or TensorType(DType.FLOAT32, None))
    if kind == "optional_type":
        element = type_of(proto.optional_type.elem_type, where)
        return OptionalType(element or TensorType(DType.FLOAT32, None))
    if kind == "map_type":
        value = type_of(proto.map_type.value_type, where) or TensorType(DType.FLOAT32, None)
        return MapType(dtype_of(proto.map_type.key_type, where), value)
    raise InvalidModelError(f"{where} has the type {kind}, which the engine does not know")


def array_of(proto: TensorProto, folder: Path | None, where: str) -> Array:
    """The array of an ONNX tensor. External data is a read-only map of its file.

    Raises MissingDataError when the external file is absent, too short or outside ``folder``, and
    InvalidModelError when the tensor's own bytes do not fit its shape.
    """
    dtype = dtype_of(proto.data_type, where)
    shape = tuple(int(dim) for dim in proto.dims)
    if any(dim < 0 for dim in shape):
        raise InvalidModelError(f"{where} has a negative size in its shape {list(shape)}")
    if proto.data_location == TensorProto.EXTERNAL:
        return _external(proto, dtype, shape, folder, where)
    try:
        array = numpy_helper.to_array(proto)
    except Exception as error:
        raise InvalidModelError(
            f"{where} ({dtype.value}{list(shape)}) holds data that does not fit: {error}"
        ) from None
    if dtype is DType.STRING:
        flat = [s.decode("utf-8", "replace") if isinstance(s, bytes) else s for s in array.ravel()]
        array = np.array(flat, object).reshape(shape)
    return np.asarray(array).astype(dtype.numpy, copy=False)


def _external(
    proto: TensorProto, dtype: DType, shape: tuple[int, ...], folder: Path | None, where: str
) -> Array:
    fields = {item.key: item.value for item in proto.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise MissingDataError(f"{where} has external data, but the model was given as bytes")
    path = _inside(folder, location, where)
    try:
        offset, length = int(fields.get("offset", 0)), int(fields.get("length", -1))
    except ValueError:
        raise InvalidModelError(f"{where}: offset or length of its data is no number") from None
    count = math.prod(shape)
    bits = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2}.get(dtype.value, 0)
    needed = -(-count * bits // 8) if bits else count * dtype.nbytes
    available = path.stat().st_size
    if offset < 0 or length not in (-1, needed) or offset + needed > available:
        raise MissingDataError(
            f"{where} needs {needed} bytes at offset {offset} of {location!r}, "
            f"which holds {available} (declared length: {length if length >= 0 else 'none'})"
        )
    if count == 0:
        return np.zeros(shape, dtype.numpy)
    if bits:
        raw = TensorProto()
        raw.CopyFrom(proto)
        raw.ClearField("external_data")
        raw.data_location = TensorProto.DEFAULT
        raw.raw_data = np.fromfile(path, np.uint8, needed, offset=offset).tobytes()
        return np.asarray(numpy_helper.to_array(raw))
    return np.memmap(path, dtype.numpy, "r", offset, shape)


def _inside(folder: Path, location: str, where: str) -> Path:
    root = folder.resolve()
    if not location or os.path.isabs(location):
        raise MissingDataError(
            f"{where} names the external file {location!r}; expected a path relative to the model"
        )
    try:
        path = (root / location).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a nul byte, a loop of links
        raise MissingDataError(
            f"{where} names the external file {location!r}, which is no path: {error}"
        ) from None
    if not path.is_relative_to(root):
        raise MissingDataError(
            f"{where} names the external file {location!r}, which lies outside the model's folder"
        )
    if not found:
        raise MissingDataError(f"{where} needs the external file {location!r}, which is not there")
    return path
