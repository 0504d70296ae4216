"""The CUDA driver's functions, found once, with every answer checked."""

from __future__ import annotations

import functools
from typing import Any, NoReturn

from engine.errors import (
    DeviceError,
    DeviceMemoryError,
    EngineError,
    KernelError,
    MissingExtraError,
)

__all__ = ["LEAST_VERSION", "bindings", "call", "check", "count"]

#: The least version of CUDA that the driver must serve, as it counts them.
LEAST_VERSION = 13000

_OUT_OF_MEMORY = 2
#: After these nothing runs in this process's CUDA context any more.
_FAULTS = {
    214: "an error in its memory that could not be corrected",
    220: "an error of its link to another GPU",
    700: "an access to memory that is not there",
    702: "a kernel that ran too long",
    710: "a failed assertion in a kernel",
    714: "a damaged stack of a kernel",
    715: "an instruction that it does not have",
    716: "an access to an address that is not aligned",
    717: "an access to the wrong kind of memory",
    718: "a jump to no instruction",
    719: "a kernel that failed",
    721: "a cluster that failed",
}
#: Machine code that the device or its driver does not take.
_IMAGES = {200, 209, 218, 222, 223, 224, 500}
_MISSING = {
    3: "it was not initialised",
    34: "the driver found is a stub without a GPU",
    100: "there is none on this machine, or none that this process may see",
    101: "there is none with this number",
    46: "it is in use by another process that wants it alone",
    802: "it is not ready yet; its fabric manager may still be starting",
    803: "its driver and the libraries of the driver differ in version; restart the machine",
    804: "its driver is too old for the CUDA compatibility package, which it does not support",
}


@functools.cache
def bindings() -> Any:
    """The module with the driver's functions, initialised.

    Raises MissingExtraError without the package, DeviceError without a driver or a GPU, or when
    the driver is too old.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        raise MissingExtraError("cuda-bindings", "cuda", "running on a GPU") from None
    try:
        error, version = driver.cuDriverGetVersion()
    except Exception as failure:  # the finder of libraries has errors of its own
        raise DeviceError(
            "there is no NVIDIA driver on this machine; install one for CUDA 13 "
            f"(580 or later), or build for the target cpu ({_brief(failure)})"
        ) from None
    if int(error) == 0 and version < LEAST_VERSION:
        raise DeviceError(
            f"the NVIDIA driver is too old: it serves CUDA {_spelled(version)}, needed is "
            f"{_spelled(LEAST_VERSION)}; install driver 580 or later"
        )
    try:
        (error,) = driver.cuInit(0)
    except Exception as failure:
        raise DeviceError(f"the NVIDIA driver does not start: {_brief(failure)}") from None
    if int(error):
        _fail(driver, error, "start the driver")
    return driver


def count() -> int:
    """How many GPUs there are; errors as for `bindings`."""
    return int(call("cuDeviceGetCount", doing="count the GPUs"))


def call(name: str, *arguments: Any, doing: str) -> Any:
    """Call a function of the driver: its one result, a tuple of several, or None.

    ``doing`` completes "could not ..." in a message. Raises DeviceMemoryError, KernelError for
    machine code that the device refuses, DeviceError for anything else.
    """
    driver = bindings()
    error, *results = getattr(driver, name)(*arguments)
    if error:
        _fail(driver, error, doing)
    if len(results) == 1:
        return results[0]
    return tuple(results) if results else None


def check(error: Any, doing: str) -> None:
    """Raise what `call` raises when an answer of the driver is an error."""
    if error:
        _fail(bindings(), error, doing)


def _fail(driver: Any, error: Any, doing: str) -> NoReturn:
    raise _as_error(driver, error, doing)


def _as_error(driver: Any, error: Any, doing: str) -> EngineError:
    code = int(error)
    words = _words(driver, error)
    if code == _OUT_OF_MEMORY:
        return DeviceMemoryError(f"the GPU has too little free memory to {doing}")
    if code in _FAULTS:
        return DeviceError(
            f"the GPU reported {_FAULTS[code]} ({words}), found when the program was to {doing}; "
            "this process cannot use the GPU any more, a new one can"
        )
    if code in _IMAGES:
        return KernelError(f"the GPU does not take the machine code: could not {doing} ({words})")
    if code in _MISSING:
        return DeviceError(f"no GPU can be used: {_MISSING[code]} ({words})")
    return DeviceError(f"the CUDA driver could not {doing}: {words}")


def _words(driver: Any, error: Any) -> str:
    """The driver's name for an error and what it says about it."""
    parts = []
    for name in ("cuGetErrorName", "cuGetErrorString"):
        failed, text = getattr(driver, name)(error)
        if not int(failed) and text:
            parts.append(text.decode(errors="replace"))
    return ": ".join(parts) or f"error {int(error)}"


def _spelled(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _brief(failure: Exception) -> str:
    text = str(failure).strip().splitlines()
    return text[0][:160] if text else type(failure).__name__
