"""Meanings of operators on CuPy's arrays, which NumPy's functions accept in place of its own.

NumPy hands a call over to CuPy where CuPy has the same function, and raises TypeError where it has
not: an array never moves to the host unseen. A meaning that asks for a single value of an array
(``int(x)``, ``if x.any()``) waits for the device and gets that value.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from engine.errors import DeviceMemoryError, EngineError, KernelError, MissingExtraError
from engine.ir.types import Array
from engine.ops.operator import Operator

__all__ = [
    "CupyStream",
    "DeviceTensor",
    "cupy_module",
    "device_meaning",
    "has_dtype",
    "to_device",
    "to_host",
    "wrapped",
]

_PURPOSE = "a layer that runs by its meaning on the GPU (cupy.meaning)"


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """Where a tensor lies on the device, row-major."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def cupy_module() -> Any:
    """CuPy; MissingExtraError when it is not installed."""
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError("cupy", "cupy", _PURPOSE) from error
    return cupy


def has_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether CuPy computes with an element type as NumPy does: booleans, integers, floats."""
    return dtype.isbuiltin == 1 and dtype.kind in "biuf"


class CupyStream:
    """A stream of ours as CuPy's current one, in a ``with`` statement, on one device."""

    def __init__(self, handle: int, index: int) -> None:
        cupy = cupy_module()
        self.handle = handle
        self._device = cupy.cuda.Device(index)
        self._stream = cupy.cuda.Stream.from_external(self)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle

    def __enter__(self) -> None:
        self._device.__enter__()
        self._stream.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.__exit__(kind, error, traceback)
        self._device.__exit__(kind, error, traceback)


def wrapped(tensor: DeviceTensor, index: int) -> Any:
    """A CuPy array over memory that is not CuPy's and outlives it."""
    cupy = cupy_module()
    if tensor.nbytes == 0:
        return cupy.empty(tensor.shape, tensor.dtype)
    memory = cupy.cuda.UnownedMemory(tensor.address, tensor.nbytes, None, index)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    return cupy.ndarray(tensor.shape, tensor.dtype, memptr=pointer)


def device_meaning(
    operator: Operator, inputs: Sequence[Any], count: int, where: str
) -> tuple[Any, ...]:
    """The first ``count`` outputs of an operator on CuPy's arrays, all of them CuPy's arrays.

    None stands for an absent input. Raises DeviceMemoryError when the device is full and
    KernelError, naming ``where``, when the meaning does not run on such arrays.
    """
    cupy = cupy_module()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = operator.meaning(*inputs)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{where}: CuPy found too little free memory on the GPU ({error}); use smaller inputs, "
            "close other contexts, or end other programs on this GPU"
        ) from error
    except EngineError:
        raise
    except Exception as error:
        raise KernelError(f"{where} failed on the GPU: {_brief(error)}") from error
    found = results if isinstance(results, tuple) else (results,)
    for position, result in enumerate(found[:count]):
        if not isinstance(result, cupy.ndarray):
            raise KernelError(
                f"{where}: its output {position} is {type(result).__name__} on the host, expected "
                "an array on the GPU"
            )
    return tuple(found[:count])


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def to_device(array: Array) -> Any:
    """A copy of an array on the current device."""
    return cupy_module().asarray(array)


def to_host(array: Any) -> Array:
    """A copy of a CuPy array; waits for the current stream."""
    found: Array = np.asarray(cupy_module().asnumpy(array))
    return found
