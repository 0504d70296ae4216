"""Generated CUDA C on the CPU: g++ compiles a kernel, threads of a block are fibers.

`run_kernel` is the whole interface for tests of kernels; `load_function` serves those who launch
by addresses, as a driver does. Arrays are copied into memory of their own (`tests.paged_memory`); a
kernel that reads or writes outside of them, waits for ever, or whose result depends on the order of
its threads fails the test.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cuda.kernel import DeviceKernel
from tests.paged_memory import Paged, place_of

__all__ = ["Function", "ShimError", "load_function", "run_kernel"]

HEADER = Path(__file__).parent / "cuda_shim.h"
POISON = 0xFF
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-w",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-stack-protector",
    "-fno-exceptions",
    "-fsanitize=alignment",
    "-fsanitize=bounds",
    "-fsanitize-recover=all",
]
#: "extern __shared__ T name[];", in any order of its attributes.
_DYNAMIC = re.compile(
    r"extern\s+(?=[^;]*__shared__)((?:__shared__|__align__\(\d+\)|alignas\(\d+\)|\s)*)"
    r"([A-Za-z_][\w ]*?)\s*(?:__align__\(\d+\)\s*)?(\w+)\s*\[\s*\]\s*;"
)
_LETTERS = {"i32": "i", "i64": "l", "f32": "f"}
_NUMPY = {np.dtype(np.int32): "i", np.dtype(np.int64): "l", np.dtype(np.float32): "f"}
_CTYPES: dict[str, Any] = {
    "p": ctypes.c_uint64,
    "i": ctypes.c_int32,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
}


class ShimError(AssertionError):
    """A kernel does what no kernel may: the message says what, and in which thread.

    A second argument is the address of an access to memory that is not there.
    """


@functools.cache
def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        message = "g++ is missing: generated CUDA C cannot be run here; install g++"
        if os.environ.get("CI"):
            raise RuntimeError(message)
        pytest.skip(message)
    return found


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="enginefarm-shim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def host_source(kernel: DeviceKernel) -> str:
    """The C++ that stands for a kernel."""
    source = _DYNAMIC.sub(r"static \2 *const \3 = (\2 *)shim_dynamic;", kernel.source)
    return f'#include "{HEADER}"\n#line 1 "kernel"\n{source}\nSHIM_EXPORT({kernel.entry})\n'


@dataclass(frozen=True)
class Function:
    """A compiled kernel; ``parameters`` has a letter each: p, i (32 bits), l (64 bits), f."""

    kernel: DeviceKernel
    parameters: str
    address: Any
    faulted_at: Any

    def launch(
        self,
        grid: Sequence[int],
        values: Sequence[int | float],
        *,
        backwards: bool = False,
    ) -> None:
        """Run a grid; pointers are addresses of host memory. Raises ShimError."""
        if len(values) != len(self.parameters):
            raise ShimError(
                f"{self.kernel.entry} has {len(self.parameters)} parameters, not {len(values)}"
            )
        if min(grid) < 1:
            raise ShimError(f"a grid of {tuple(grid)} blocks cannot be launched")
        held = [_CTYPES[letter](value) for letter, value in zip(self.parameters, values)]
        for letter, value, cell in zip(self.parameters, values, held):
            if letter in "il" and cell.value != value:
                raise ShimError(f"{value} does not fit into a parameter of {self.kernel.entry}")
        pointers = (ctypes.c_void_p * max(len(held), 1))(*(ctypes.addressof(x) for x in held))
        x, y, z = (*grid, 1, 1)[:3]
        error = self.address(
            pointers,
            (ctypes.c_uint * 3)(x, y, z),
            (ctypes.c_uint * 3)(self.kernel.threads, 1, 1),
            self.kernel.shared_nbytes,
            int(backwards),
        )
        if error is not None:
            at = self.faulted_at()
            raise ShimError(f"{self.kernel.entry}: {error.decode()}", *([at] if at else []))


_LOADED: dict[str, Function] = {}


def load_function(kernel: DeviceKernel) -> Function:
    """Compile a kernel for the host, once per process; ShimError has the compiler's words."""
    if kernel.compiler != "nvrtc":
        raise ShimError(f"the shim runs CUDA C, {kernel.entry} is written for {kernel.compiler}")
    found = _LOADED.get(kernel.digest)
    if found is None:
        text = host_source(kernel)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        library = ctypes.CDLL(str(_built(name, text, kernel.entry)))
        library.shim_signature.restype = ctypes.c_char_p
        library.shim_run.restype = ctypes.c_char_p
        library.shim_faulted_at.restype = ctypes.c_uint64
        letters = library.shim_signature().decode()
        if set(letters) - set(_CTYPES):
            raise ShimError(f"{kernel.entry} has a parameter that no launch passes: {letters}")
        found = _LOADED[kernel.digest] = Function(
            kernel, letters, library.shim_run, library.shim_faulted_at
        )
        library.shim_run.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint64,
            ctypes.c_int,
        ]
    return found


def _built(name: str, text: str, entry: str) -> Path:
    folder = _folder()
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    if library.exists():
        return library
    source.write_text(text)
    # Linked apart, because the checks' own library is not wanted: the shim has their handlers.
    part = folder / f"{name}.o"
    for command in (
        [_compiler(), *FLAGS, "-c", str(source), "-o", str(part)],
        [_compiler(), "-shared", str(part), "-o", str(library)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ShimError(f"g++ refuses {entry}:\n{done.stderr[:4000]}")
    return library


def _root(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory, so that views of one array stay views of one buffer."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class _Guarded:
    """A copy of an array that ends, or begins, at a page without access."""

    def __init__(self, array: np.ndarray, *, at_end: bool) -> None:
        if not array.flags.c_contiguous:
            raise ValueError("a kernel's argument must own contiguous memory or be a view of such")
        self.array = array
        self.memory = Paged(array.nbytes, at_end=at_end)
        self.inside[:] = np.frombuffer(array.tobytes(), np.uint8)

    @property
    def inside(self) -> np.ndarray:
        return self.memory.inside

    @property
    def buffer(self) -> tuple[str, int, int]:
        """Name, beginning and bytes."""
        name = f"an array of {self.array.shape} {self.array.dtype}"
        return name, self.memory.address, self.memory.nbytes

    def address_of(self, view: np.ndarray) -> int:
        return int(self.memory.address + view.ctypes.data - self.array.ctypes.data)

    def check(self, entry: str) -> None:
        for where, whole in zip(("before", "past the end of"), self.memory.untouched()):
            if not whole:
                raise ShimError(f"{entry} writes {where} an array of {self.array.shape}")

    def copy_back(self) -> None:
        if self.array.flags.writeable:
            flat = self.array.reshape(-1).view(np.uint8)
            flat[:] = self.inside
        elif self.inside.tobytes() != self.array.tobytes():
            raise ShimError("a kernel writes to an array that is read-only")


def located(error: ShimError, buffers: Sequence[tuple[str, int, int]]) -> ShimError:
    """The error with the place of its access among buffers, each a name, a beginning and bytes."""
    if len(error.args) < 2:
        return error
    return ShimError(f"{error.args[0]}: {place_of(error.args[1], buffers)}")


def _scalar(entry: str, letter: str, value: Any) -> int | float:
    if isinstance(value, tuple):
        kind, number = value
        given = _LETTERS[kind]
    elif isinstance(value, np.generic) and value.dtype in _NUMPY:
        given, number = _NUMPY[value.dtype], value.item()
    else:
        raise TypeError(f"an argument is an array, None, a NumPy scalar or (kind, value): {value}")
    if given != letter:
        raise ShimError(f"{entry} wants a parameter of kind {letter!r} where {value!r} is given")
    return number


def run_kernel(
    kernel: DeviceKernel,
    grid: Sequence[int],
    arguments: Sequence[Any],
    *,
    deterministic: bool = True,
) -> None:
    """Run a kernel on NumPy arrays in place; views of one array share its memory.

    Arguments are arrays (pointers), None (null), NumPy scalars of int32, int64 or float32, or pairs
    ("i32" | "i64" | "f32", number). The kernel runs twice, with threads and blocks in opposite
    orders; unless ``deterministic`` is false, both must write the same bytes. Raises ShimError.
    With ENGINEFARM_TEST_KERNELS=gpu it runs on the GPU (`tests.gpu_kernels`).
    """
    if os.environ.get("ENGINEFARM_TEST_KERNELS") == "gpu":
        from tests.gpu_kernels import run_on_gpu

        run_on_gpu(kernel, grid, arguments, deterministic=deterministic)
        return
    function = load_function(kernel)
    results: list[list[_Guarded]] = []
    for backwards in (True, False):
        guarded: dict[int, _Guarded] = {}
        values: list[int | float] = []
        for letter, argument in zip(function.parameters, arguments):
            if argument is None or isinstance(argument, np.ndarray):
                if letter != "p":
                    raise ShimError(f"{kernel.entry} wants no pointer as parameter {len(values)}")
                if argument is None:
                    values.append(0)
                    continue
                root = _root(argument)
                held = guarded.get(id(root)) or _Guarded(root, at_end=backwards)
                guarded[id(root)] = held
                values.append(held.address_of(argument))
            else:
                values.append(_scalar(kernel.entry, letter, argument))
        if len(arguments) != len(function.parameters):
            values = [0] * len(arguments)
        try:
            function.launch(grid, values, backwards=backwards)
        except ShimError as error:
            raise located(error, [held.buffer for held in guarded.values()]) from None
        for held in guarded.values():
            held.check(kernel.entry)
        results.append(list(guarded.values()))
    for first, second in zip(*results):
        if deterministic and first.inside.tobytes() != second.inside.tobytes():
            raise ShimError(
                f"{kernel.entry} depends on the order of its threads: a missing barrier"
            )
        second.copy_back()
