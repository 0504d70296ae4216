"""A device kernel before compilation, and what a compiler makes of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from engine.plan.device import TensorMapForm

__all__ = ["Compiled", "Constant", "DeviceKernel", "Failure"]

Constant = int | bool | str
_QUIET = "#define EF_QUIET\n"


@dataclass(frozen=True)
class DeviceKernel:
    """Text and everything else on which a cubin depends; equal values give equal cubins.

    ``compiler`` is "nvrtc" (``source`` is CUDA C with an ``extern "C"`` function) or "triton"
    (``source`` is a Python module with a jitted function). ``threads`` is the size of a block, for
    Triton 32 times its warps. For NVRTC ``shared_nbytes`` is dynamic shared memory. For Triton
    ``signature`` lists run-time parameters with their types ("*fp16", "i32",
    "tensordesc<fp16[128, 64]>"), ``constants`` the compile-time ones, ``aligned`` the run-time
    parameters that are multiples of 16, ``stages`` the depth of its pipelines. ``waits`` as in
    `engine.plan.device.DeviceFunction`; on devices before 9.0 it is ignored. ``maps`` and
    ``cluster`` are for NVRTC: the forms of the tensor maps among the parameters, in their order,
    and blocks per cluster (Triton's compiler tells them itself).
    """

    compiler: Literal["nvrtc", "triton"]
    entry: str
    source: str
    threads: int
    shared_nbytes: int = 0
    signature: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, Constant], ...] = ()
    aligned: tuple[str, ...] = ()
    stages: int = 0
    waits: bool = False
    maps: tuple[TensorMapForm, ...] = ()
    cluster: int = 1

    def to_json(self) -> dict[str, Any]:
        """Everything that enters the digest."""
        found: dict[str, Any] = {
            "compiler": self.compiler,
            "entry": self.entry,
            "source": self.source,
            "threads": self.threads,
            "shared_nbytes": self.shared_nbytes,
            "signature": [list(item) for item in self.signature],
            "constants": [list(item) for item in self.constants],
            "aligned": list(self.aligned),
            "stages": self.stages,
            "waits": self.waits,
        }
        # Left out where they are usual: the digests of kernels without them stay as they were.
        if self.maps:
            found["maps"] = [[item.dtype, list(item.box), item.swizzle] for item in self.maps]
        if self.cluster > 1:
            found["cluster"] = self.cluster
        return found

    def quiet(self) -> DeviceKernel:
        """The same kernel, which does not let the next one begin before it has ended."""
        if self.compiler == "triton":
            text = self.source.replace("tl.extra.cuda.gdc_launch_dependents()", "pass")
        else:
            text = _QUIET + self.source.removeprefix(_QUIET)
        return replace(self, source=text)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of everything the cubin depends on but the device and the compiler."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A cubin: its bytes, how it is launched, what it uses.

    ``spilled_nbytes`` is local memory per thread that the compiler spilled registers to.
    """

    image: bytes
    entry: str
    threads: int
    shared_nbytes: int
    cluster: int = 1
    maps: tuple[TensorMapForm, ...] = ()
    waits: bool = False
    registers: int = 0
    spilled_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a kernel did not compile."""

    reason: str
