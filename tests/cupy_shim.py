"""CuPy on the host: arrays that NumPy's functions accept and that never turn into NumPy's unseen.

`installed` puts a module called cupy in place. Its arrays lie over memory given by address, as
those of a device do; functions named in ``missing`` are unknown to it, ``changed`` ones are wrong.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

__all__ = ["installed"]


class OutOfMemoryError(MemoryError):
    pass


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    __hash__ = None  # type: ignore[assignment]
    missing: frozenset[str] = frozenset()
    changed: Mapping[str, Any] = {}

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None) -> None:
        if memptr is None:
            self.host = np.empty(shape, dtype)
            return
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        assert memptr.memory.size == nbytes
        memory: Any = (ctypes.c_uint8 * nbytes).from_address(memptr.memory.ptr)
        self.host = np.frombuffer(memory, np.uint8).view(dtype).reshape(shape)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return self._called(ufunc.__name__, getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, _: Any, inputs: Any, options: Any) -> Any:
        return self._called(function.__name__, function, inputs, options)

    def _called(self, name: str, function: Any, inputs: Any, options: Any) -> Any:
        if name in self.missing:
            return NotImplemented
        function = self.changed.get(name, function)
        return _wrapped(function(*_unwrapped(inputs), **_unwrapped(options)))

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(self.host[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[_index(key)] = _unwrapped(value)

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __index__(self) -> int:
        return self.host.__index__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols by which NumPy would read the memory
            raise AttributeError(name)
        found = getattr(self.host, name)
        if not callable(found):
            return _wrapped(found)
        return lambda *inputs, **options: _wrapped(
            found(*_unwrapped(inputs), **_unwrapped(options))
        )


def _index(key: Any) -> Any:
    """An index; CuPy takes NumPy's arrays there, small ones mostly, and copies them."""
    if isinstance(key, tuple):
        return tuple(_index(item) for item in key)
    return key if isinstance(key, np.ndarray) else _unwrapped(key)


def _unwrapped(value: Any) -> Any:
    """Arguments of NumPy's; an array of the host among them is refused, as CuPy does."""
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrapped(item) for item in value)
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    return value


def _over(array: np.ndarray) -> ndarray:
    found = ndarray.__new__(ndarray)
    found.host = array
    return found


def _wrapped(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return _over(np.asarray(value))
    if isinstance(value, (tuple, list)):
        return type(value)(_wrapped(item) for item in value)
    return value


class _Current:
    """A device or stream that can be made the current one."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


class _Stream(_Current):
    seen: list[int] = []

    @classmethod
    def from_external(cls, stream: Any) -> _Stream:
        version, handle = stream.__cuda_stream__()
        assert version == 0
        cls.seen.append(handle)
        return cls()


def installed(
    patch: pytest.MonkeyPatch,
    missing: frozenset[str] = frozenset(),
    changed: Mapping[str, Any] | None = None,
) -> list[int]:
    """Make ``import cupy`` find this; the handles of the streams that it was given."""
    cupy: Any = types.ModuleType("cupy")
    cupy.ndarray = ndarray
    cupy.empty = ndarray
    cupy.asarray = lambda array: _over(np.array(array))
    cupy.asnumpy = lambda array: array.host.copy()
    cupy.cuda = types.SimpleNamespace(
        Device=_Current,
        Stream=_Stream,
        MemoryPointer=lambda memory, offset: types.SimpleNamespace(memory=memory, offset=offset),
        UnownedMemory=lambda ptr, size, owner, index: types.SimpleNamespace(ptr=ptr, size=size),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setattr(ndarray, "missing", missing)
    patch.setattr(ndarray, "changed", changed or {})
    patch.setattr(_Stream, "seen", [])
    return _Stream.seen
