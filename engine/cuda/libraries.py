"""Vendors' libraries: what the runtime asks of them, and where their files lie.

A `Library` is opened once per device and process; a `PreparedCall` is one step of one program at
fixed sizes. Preparing creates descriptors and may take milliseconds; running only enqueues work on
a stream, allocates nothing on the device, and may be captured into a CUDA graph.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.errors import DeviceError, MissingExtraError
from engine.target import CudaTarget, describe

__all__ = [
    "Library",
    "LibraryName",
    "PreparedCall",
    "installed_version",
    "load_shared",
    "open_library",
    "why_no_device",
]

LibraryName = Literal["cublaslt", "cudnn"]


class PreparedCall(Protocol):
    """One call of a library, ready to be enqueued; used by one thread at a time."""

    @property
    def workspace_nbytes(self) -> int:
        """Bytes of device memory that a run needs as workspace; 0 for none."""
        ...

    @property
    def operand_nbytes(self) -> Sequence[int]:
        """How far each operand reaches from its address, in bytes; what a plan must hold there."""
        ...

    def run(
        self, operands: Sequence[int], workspace: int, workspace_nbytes: int, stream: int
    ) -> None:
        """Enqueue the call on a stream.

        ``operands`` are device addresses in the order of the step's operands, ``workspace`` a
        device address on a multiple of 256 (0 when the call needs none), ``stream`` the CUDA stream
        as an integer. The device's primary context must be current. Raises KernelError when the
        library refuses.
        """
        ...

    def close(self) -> None:
        """Release descriptors; the call cannot run afterwards. A second close does nothing."""
        ...


class Library(Protocol):
    """A vendor's library on one device."""

    @property
    def version(self) -> int:
        """The library's own version number."""
        ...

    def prepare(
        self, call: Mapping[str, Any], sizes: Sequence[int], target: CudaTarget
    ) -> PreparedCall:
        """Make a step's call ready; the device's primary context must be current.

        ``call`` is a step's JSON, which may be hostile, ``sizes`` the values of its sizes. Raises
        PlanCorruptError when either means nothing, KernelError when the library does not run the
        stored choice at these sizes, on this device or in this version.
        """
        ...

    def close(self) -> None:
        """Release the library's handle; prepared calls must be closed before."""
        ...


def open_library(name: LibraryName, rest: int = 0) -> Library:
    """Open a library for the device whose primary context is current in this thread.

    ``rest`` is a stream that outlives the library, for handles that keep one between calls.
    Raises MissingExtraError when it is not installed and KernelError when it does not start.
    """
    if name == "cublaslt":
        from engine.cuda.cublaslt import CublasLt

        return CublasLt()
    from engine.cuda.cudnn_graph import CudnnGraphs

    return CudnnGraphs(rest)


@functools.cache
def installed_version(name: str) -> int | None:
    """The version of a library as its records name it; None where it is not installed."""
    try:
        if name == "cublaslt":
            from engine.cuda.cublaslt_functions import functions

            return functions().version
        from engine.cuda.cudnn_graph import frontend

        return int(frontend().backend_version())
    except MissingExtraError:
        return None


def why_no_device(target: CudaTarget) -> str:
    """Why no library can be asked what it offers on a target here; "" when one can be.

    Libraries enumerate on the device itself. Elsewhere their choices come from timing records.
    """
    try:
        here = describe("cuda")
    except (DeviceError, MissingExtraError) as error:
        return f"no device to ask for algorithms ({error})"
    assert isinstance(here, CudaTarget)
    if (here.capability, here.name) != (target.capability, target.name):
        return (
            f"no device to ask for algorithms: the GPU here is {here.device_class}, the target "
            f"{target.device_class}"
        )
    return ""


def load_shared(
    soname: str, folders: Sequence[str], *, package: str, extra: str, purpose: str
) -> ctypes.CDLL:
    """Load a shared library of NVIDIA's.

    In this order: the one that is in the process already (two copies of one library would not
    share handles), those of Python wheels (``folders``, relative to a site-packages), what the
    system's loader finds, a CUDA toolkit. Raises MissingExtraError naming ``package`` and the
    ``extra`` that installs it.
    """
    try:
        return ctypes.CDLL(soname, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        pass
    failed = ""
    for candidate in _places(soname, folders):
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            if candidate != soname:
                failed = f" ({candidate} does not load: {str(error)[:200]})"
    raise MissingExtraError(package, extra, purpose + failed)


def _places(soname: str, folders: Sequence[str]) -> Iterator[str]:
    """Paths that exist, then the bare name for the system's loader, then toolkits."""
    for entry in sys.path:
        for folder in folders:
            path = Path(entry) / folder / soname
            if entry and path.is_file():
                yield str(path)
    yield soname
    roots = [os.environ.get(name, "") for name in ("CUDA_PATH", "CUDA_HOME")]
    for root in (*roots, "/usr/local/cuda"):
        path = Path(root) / "lib64" / soname
        if root and path.is_file():
            yield str(path)
