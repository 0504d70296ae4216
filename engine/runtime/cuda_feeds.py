"""Arrays on a GPU, ours and other people's: DLPack, `__cuda_array_interface__`, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import FeedError
from engine.ir.types import Array, DType, TensorType
from engine.plan.slots import is_fixed
from engine.plan.structure import Program
from engine.runtime import dlpack
from engine.runtime.cuda_memory import LEGACY, ResultMemory, Stream
from engine.runtime.feeds import check_feeds

__all__ = ["DeviceArray", "DeviceView", "check_cuda_feeds", "device_view", "on_device"]

#: Elements of these types have a name in the array interface.
_INTERFACE_KINDS = "biufc"


@dataclass(frozen=True, slots=True)
class DeviceView:
    """An array of a caller on the GPU, C-contiguous, ready in the order of the context's stream.

    ``owner`` keeps its memory; ``stream`` is the caller's stream where the array names one.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any = field(repr=False)
    stream: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def on_device(value: Any) -> bool:
    """Whether a value is an array on a GPU."""
    if isinstance(value, (np.ndarray, list, tuple, int, float)):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) in (dlpack.CUDA, dlpack.CUDA_MANAGED)
    return hasattr(type(value), "__cuda_array_interface__") or (
        "__cuda_array_interface__" in getattr(value, "__dict__", ())
    )


def device_view(value: Any, name: str, index: int, stream: Stream) -> DeviceView:
    """A caller's array for use on a stream, which waits for whoever is still writing it.

    Raises FeedError when the array lies on another GPU, is not C-contiguous, or does not let
    itself be shared.
    """
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(value, name, index, stream)
    return _from_interface(value, name, stream)


def _from_dlpack(value: Any, name: str, index: int, stream: Stream) -> DeviceView:
    try:
        capsule = value.__dlpack__(stream=stream.public)
    except Exception as error:  # BufferError mostly; torch has its own kinds
        raise FeedError(f"{name} cannot be shared through DLPack: {error}") from error
    found = dlpack.read_capsule(capsule, name)
    if found.device[1] != index:
        raise FeedError(
            f"{name} lies on GPU {found.device[1]}, the engine runs on GPU {index}; copy it there"
        )
    _check_order(found.shape, found.strides, name)
    return DeviceView(found.address, found.shape, found.dtype.numpy, (capsule, value))


def _from_interface(value: Any, name: str, stream: Stream) -> DeviceView:
    told: Mapping[str, Any] = value.__cuda_array_interface__
    try:
        dtype = np.dtype(told["typestr"])
        shape = tuple(int(size) for size in told["shape"])
        address = int(told["data"][0] or 0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FeedError(f"{name} has a broken __cuda_array_interface__: {error}") from None
    strides = told.get("strides")
    if strides is not None:
        if any(step % dtype.itemsize for step in strides):
            raise FeedError(f"{name} is not C-contiguous; make a contiguous copy")
        strides = tuple(int(step) // dtype.itemsize for step in strides)
    _check_order(shape, strides, name)
    other = told.get("stream")
    if other is not None:
        stream.wait_for(int(other))
    return DeviceView(address, shape, dtype, value, None if other is None else int(other))


def _check_order(shape: tuple[int, ...], strides: tuple[int, ...] | None, name: str) -> None:
    if strides is None or 0 in shape:
        return
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != step:
            raise FeedError(
                f"{name} is not C-contiguous (shape {list(shape)}, strides {list(strides)}); "
                "make a contiguous copy"
            )
        step *= size


class DeviceArray:
    """A tensor on a GPU that an engine made.

    Whoever takes it through DLPack or the array interface gets it in the right order: their stream
    waits for the run that makes it. `numpy` waits and copies.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: DType,
        stream: Stream,
        owner: object = None,
    ) -> None:
        self.address, self.shape = address, shape
        self.element_type = dtype
        self._stream, self._owner = stream, owner

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the elements."""
        return self.element_type.numpy

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    def numpy(self) -> Array:
        """A copy on the host; waits for the run that makes it."""
        found: Array = np.empty(self.shape, self.dtype)
        device = self._stream.device
        device.use()
        device.download(found.ctypes.data, self.address, found.nbytes, self._stream.handle)
        device.synchronize(self._stream.handle)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array on a GPU cannot become a NumPy array without a copy")
        found = self.numpy()
        return found if dtype is None else found.astype(dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._stream.device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; ``stream`` is the taker's, 1 the default one, -1 for no order at all."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("this array is shared where it lies, without a copy")
        if stream != -1:
            self._used_by(LEGACY if stream is None else int(stream))
        index = self._stream.device.index
        return dlpack.make_capsule(self.address, index, self.element_type, self.shape, self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype.kind not in _INTERFACE_KINDS:
            raise AttributeError(
                f"{self.element_type.value} has no name in the array interface; use DLPack"
            )
        self._note(LEGACY)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": self._stream.public,
        }

    def _used_by(self, stream: int) -> None:
        self._stream.device.use()
        self._stream.hold_back(stream)
        self._note(stream)

    def _note(self, stream: int) -> None:
        if isinstance(self._owner, ResultMemory):
            self._owner.users.add(stream)

    def __repr__(self) -> str:
        index = self._stream.device.index
        return f"DeviceArray({self.element_type.value}{list(self.shape)} on GPU {index})"


def check_cuda_feeds(
    program: Program, feeds: Mapping[str, Any], stream: Stream, states: frozenset[str]
) -> list[Any]:
    """The feeds in the order of the program's inputs: `DeviceView`, NumPy arrays, Python values.

    Inputs in ``states`` may be missing and are None then. Raises FeedError for a missing or unknown
    name, a wrong dtype or a wrong rank.
    """
    names = {program.slots[index].name: program.slots[index] for index in program.inputs}
    index = stream.device.index
    views: dict[str, DeviceView] = {}
    rest: dict[str, Any] = {}
    for name, value in feeds.items():
        if isinstance(value, DeviceView):
            views[name] = value
        elif name in names and on_device(value):
            view = device_view(value, f"input {name!r}", index, stream)
            if is_fixed(names[name]):
                views[name] = view
            else:
                rest[name] = _downloaded(view, stream)
        else:
            rest[name] = value
    for name, view in views.items():
        check_view(f"input {name!r}", names[name].type, view)
    absent = {name for name in names if name in states and name not in rest}
    skipped = absent | set(views)
    checked = iter(check_feeds(program, rest, skipped))
    return [views.get(name) if name in skipped else value for name, value in zip(names, checked)]


def check_view(name: str, kind: Any, view: DeviceView) -> None:
    """Raise FeedError when an array on a GPU has a wrong dtype or rank."""
    assert isinstance(kind, TensorType)
    if view.dtype != kind.dtype.numpy:
        raise FeedError(
            f"{name} has dtype {view.dtype}, expected {kind.dtype.numpy}; convert it first"
        )
    if kind.shape is not None and len(view.shape) != len(kind.shape):
        raise FeedError(
            f"{name} has {len(view.shape)} axes (shape {list(view.shape)}), expected "
            f"{len(kind.shape)}: {kind}"
        )


def _downloaded(view: DeviceView, stream: Stream) -> Array:
    found: Array = np.empty(view.shape, view.dtype)
    stream.device.download(found.ctypes.data, view.address, found.nbytes, stream.handle)
    stream.device.synchronize(stream.handle)
    return found
