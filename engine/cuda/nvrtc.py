"""NVRTC as the compiler of generated CUDA C: source in, cubin and what it uses out.

No GPU and no header files are needed; kernels convert narrow floats by inline PTX. Options are
fixed and none depends on the machine, so equal kernels give equal bytes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from typing import Any

from engine.cuda.kernel import Compiled, DeviceKernel
from engine.errors import KernelError, MissingExtraError

__all__ = ["architecture_of", "compile_nvrtc", "nvrtc_version"]

#: Arithmetic as IEEE 754 has it, but for contraction into fused multiply-adds; "-v" makes the
#: assembler say what a kernel uses; our own cache takes the place of the library's.
OPTIONS = (
    "--std=c++17",
    "--fmad=true",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--disable-warnings",
    "--no-source-include",
    "--no-cache",
    "--ptxas-options=-v",
)
#: Machine code that may use what only this architecture has (wgmma, tcgen05, setmaxnreg).
_SPECIFIC = {(9, 0), (10, 0)}
_ERROR = re.compile(r"^.*\b(?:catastrophic error|error|fatal)\b.*$", re.MULTILINE | re.IGNORECASE)
_PROPERTIES = r"Function properties for {}\s*\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
_USED = r"Compiling entry function '{}'.*?Used (\d+) registers([^\n]*)"
_SHARED = re.compile(r"(\d+) bytes smem")
_REGISTERS = 65536


def architecture_of(capability: tuple[int, int]) -> str:
    """The name of the machine code for a compute capability, as "sm_90a"."""
    major, minor = capability
    return f"sm_{major}{minor}" + ("a" if capability in _SPECIFIC else "")


def compile_nvrtc(kernel: DeviceKernel, capability: tuple[int, int]) -> Compiled:
    """The cubin of a kernel for one compute capability.

    Raises KernelError with the compiler's first error, or when a block of this many threads cannot
    have its registers and shared memory; MissingExtraError without NVRTC.
    """
    if kernel.compiler != "nvrtc":
        raise ValueError(f"the kernel {kernel.entry!r} is for {kernel.compiler}, not for nvrtc")
    image, log = _compile(kernel, architecture_of(capability))
    entry = re.escape(kernel.entry)
    used = re.search(_USED.format(entry), log, re.DOTALL)
    spilled = re.search(_PROPERTIES.format(entry), log, re.DOTALL)
    if used is None or spilled is None:
        raise KernelError(
            f'the source has no kernel called {kernel.entry!r}; expected an extern "C" function '
            "of that name"
        )
    compiled = Compiled(
        image=image,
        entry=kernel.entry,
        threads=kernel.threads,
        shared_nbytes=kernel.shared_nbytes,
        cluster=kernel.cluster,
        maps=kernel.maps,
        waits=kernel.waits and capability >= (9, 0),
        registers=int(used[1]),
        spilled_nbytes=max(int(spilled[1]), int(spilled[2])),
    )
    fixed = _SHARED.search(used[2])
    _check_fit(compiled, int(fixed[1]) if fixed else 0, capability)
    return compiled


def _check_fit(compiled: Compiled, fixed_nbytes: int, capability: tuple[int, int]) -> None:
    """Raise KernelError when no multiprocessor could hold one block."""
    warps = -(-compiled.threads // 32)
    registers = warps * 32 * -(-compiled.registers // 8) * 8
    if registers > _REGISTERS:
        raise KernelError(
            f"{compiled.entry} uses {compiled.registers} registers in each of {compiled.threads} "
            f"threads, a multiprocessor has {_REGISTERS}; give it smaller tiles or blocks"
        )
    total, most = fixed_nbytes + compiled.shared_nbytes, _most_shared(capability)
    if total > most:
        raise KernelError(
            f"{compiled.entry} uses {total} bytes of shared memory, a block may have {most}; "
            "give it smaller tiles or fewer stages"
        )


def _most_shared(capability: tuple[int, int]) -> int:
    """Bytes of shared memory of one block (CUDA programming guide, technical specifications)."""
    if capability in ((8, 0), (8, 7)):
        return 163 << 10
    return 227 << 10 if capability[0] in (9, 10, 11) else 99 << 10


def _compile(kernel: DeviceKernel, architecture: str) -> tuple[bytes, str]:
    """Cubin and log."""
    nvrtc = _library()
    source, name = kernel.source.encode(), f"{kernel.entry}.cu".encode()
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source, name, 0, [], []))
    try:
        options = [item.encode() for item in (f"--gpu-architecture={architecture}", *OPTIONS)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _text(nvrtc, program)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            first = _ERROR.search(log)
            told = first[0].strip() if first else log.strip()[:500] or status.name
            raise KernelError(f"NVRTC refused {kernel.entry} for {architecture}: {told}")
        image = bytearray(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, image))
        return bytes(image), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(nvrtc: Any, program: Any) -> str:
    log = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
    if log:
        _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b"\0").decode(errors="replace")


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a call; KernelError when it failed."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"NVRTC failed with {status.name}")
    return values[0] if values else None


@functools.cache
def _library() -> Any:
    """The bindings, once their shared library was found."""
    purpose = "compiling generated CUDA kernels"
    try:
        from cuda.bindings import nvrtc
        from cuda.pathfinder import DynamicLibNotFoundError
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "cuda", purpose) from error
    try:
        _checked(nvrtc, nvrtc.nvrtcVersion())
    except (DynamicLibNotFoundError, RuntimeError) as error:
        raise MissingExtraError("nvidia-cuda-nvrtc", "cuda", purpose) from error
    return nvrtc


@functools.cache
def nvrtc_version() -> str:
    """The version of the library that compiles, as exactly as it tells.

    Raises MissingExtraError without NVRTC.
    """
    nvrtc = _library()
    from cuda.pathfinder import load_nvidia_dynamic_lib

    status, major, minor = nvrtc.nvrtcVersion()
    _checked(nvrtc, (status,))
    path = load_nvidia_dynamic_lib("nvrtc").abs_path
    if path and "site-packages" in path:
        for package in ("nvidia-cuda-nvrtc", f"nvidia-cuda-nvrtc-cu{major}"):
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
    # A system's library is a link to a file whose name ends with the whole version.
    exact = re.search(r"\.so\.(\d+\.\d+\.\d+)$", os.path.realpath(path or ""))
    return exact[1] if exact else f"{major}.{minor}"
