"""The compiled kernels of a plan: found in the cache, or compiled while NumPy twins serve."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Literal

from engine.kernels.isa import Isa, detect
from engine.kernels.kernel import Kernel
from engine.runtime.compilation import (
    Function,
    compile_in_background,
    find_compiler,
    is_cached,
    load,
    why_no_compiler,
)

__all__ = ["CompileMode", "KernelSet", "kernel_function"]

CompileMode = Literal["background", "wait", "never"]

_log = logging.getLogger(__name__)


def kernel_function(kernel: Kernel, isa: Isa) -> Function:
    """The C function of a kernel; its name is generated from what the kernel is."""
    text = json.dumps({"kind": kernel.kind, **kernel.to_json()}, sort_keys=True)
    name = "ef_" + hashlib.sha256(text.encode()).hexdigest()[:20]
    return Function(name, kernel.source(name, isa))


class KernelSet:
    """Addresses of a plan's kernels; None until they are compiled."""

    def __init__(self, kernels: Sequence[Kernel], mode: CompileMode) -> None:
        self._future: Future[Mapping[str, int]] | None = None
        self._addresses: list[int] | None = None
        self._names: list[str] = []
        self._lock = threading.Lock()
        if not kernels:
            self._addresses = []
        elif mode != "never" and self._has_compiler():
            self._start(kernels, mode)

    @staticmethod
    def _has_compiler() -> bool:
        if find_compiler() is not None:
            return True
        warnings.warn(
            f"no C compiler, so kernels run in NumPy, slower ({why_no_compiler()}); "
            "install gcc or clang, or name one in ENGINEFARM_CC",
            RuntimeWarning,
            stacklevel=5,
        )
        return False

    def _start(self, kernels: Sequence[Kernel], mode: CompileMode) -> None:
        isa = detect()
        functions = [kernel_function(kernel, isa) for kernel in kernels]
        self._names = [function.name for function in functions]
        unique = list({function.name: function for function in functions}.values())
        if mode == "wait" or is_cached(unique, isa):
            self._take(load(unique, isa))
        else:
            _log.warning("compiling %d kernels; NumPy serves until they are ready", len(unique))
            self._future = compile_in_background(unique, isa)

    def _take(self, found: Mapping[str, int]) -> None:
        self._addresses = [found[name] for name in self._names]

    @property
    def addresses(self) -> list[int] | None:
        """One address per kernel, or None while (or because) twins serve."""
        future = self._future
        if self._addresses is not None or future is None or not future.done():
            return self._addresses
        with self._lock:
            if self._future is None:
                return self._addresses  # another thread took the result meanwhile
            self._future = None
            error = future.exception()
            if error is None:
                self._take(future.result())
            else:
                warnings.warn(
                    f"kernels could not be compiled, so they run in NumPy, slower: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return self._addresses

    @property
    def compiling(self) -> bool:
        """Whether a compilation is under way, and so the processors are busy with it."""
        future = self._future
        return future is not None and not future.done()

    def wait(self) -> bool:
        """Wait for a compilation under way; whether compiled kernels serve now."""
        future = self._future
        if future is not None:
            future.exception()
        return self.addresses is not None
