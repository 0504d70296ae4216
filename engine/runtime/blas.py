"""Keeping NumPy's BLAS threads and our own from running against each other.

OpenBLAS workers spin for a while after each call and take a core from any other pool, so steps in
NumPy run BLAS on one thread while a program also has compiled kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

__all__ = ["single_threaded"]

_PREFIXES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


@functools.cache
def _controls() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's functions that read and set the number of threads; None for another BLAS."""
    root = Path(np.__file__).parent
    for folder in (root.parent / "numpy.libs", root / ".dylibs", root / ".libs"):
        for path in sorted(folder.glob("*openblas*")):
            library = ctypes.CDLL(str(path))
            for prefix in _PREFIXES:
                names = prefix.format("get_num_threads"), prefix.format("set_num_threads")
                if all(hasattr(library, name) for name in names):
                    read, write = getattr(library, names[0]), getattr(library, names[1])
                    read.restype = ctypes.c_int
                    return read, write
    return None


_LOCK = threading.Lock()
_inside = 0  # threads within `single_threaded` now
_before = 1  # what the first of them found


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Run BLAS on one thread inside; does nothing for a BLAS that is not OpenBLAS.

    The number is the process's: the first thread that enters sets it, the last gives it back.
    """
    global _inside, _before
    controls = _controls()
    if controls is None:
        yield
        return
    read, write = controls
    with _LOCK:
        if _inside == 0:
            _before = read()
            if _before != 1:
                write(1)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0 and _before != 1:
                write(_before)
