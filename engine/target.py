"""Targets: a device as far as a build depends on it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import OptionError, TargetMismatchError

__all__ = [
    "CUDA_SOURCES",
    "CPU_SOURCES",
    "CpuTarget",
    "CudaTarget",
    "Target",
    "check_target",
    "describe",
    "sources_of",
]

CPU_SOURCES = ("c", "numpy", "plugin")
CUDA_SOURCES = ("triton", "nvrtc", "cublaslt", "cudnn", "cupy", "numpy", "plugin")

#: What an instruction set can also run.
_RUNS = {
    "avx512": ("avx512", "avx2", "generic"),
    "avx2": ("avx2", "generic"),
    "neon": ("neon", "generic"),
    "generic": ("generic",),
}


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """A processor: its instruction set and threads."""

    vendor: str
    isa: str
    threads: int

    @property
    def device_class(self) -> str:
        """The name of the queue that serves this device."""
        return self.vendor

    def to_json(self) -> dict[str, Any]:
        """The target as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """An NVIDIA GPU: compute capability, size, and what kernels must fit into.

    ``shared_nbytes`` is the most shared memory of one block, ``memory_gib`` device memory in whole
    GiB, ``l2_nbytes`` the level-two cache; ``name`` is the short name of its device class.
    """

    vendor: str
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_nbytes: int
    l2_nbytes: int
    memory_gib: int

    @property
    def architecture(self) -> str:
        """The name of the machine code, as "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def device_class(self) -> str:
        """The name of the queue that serves this device."""
        return f"cuda.{self.architecture.replace('_', '')}.{self.name}"

    @property
    def has_tensor_maps(self) -> bool:
        """Whether boxes of tensors can be copied by the tensor memory accelerator."""
        return self.capability >= (9, 0)

    def to_json(self) -> dict[str, Any]:
        """The target as JSON."""
        return {**asdict(self), "capability": list(self.capability)}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> CudaTarget:
        """Read what `to_json` wrote."""
        major, minor = fields["capability"]
        return CudaTarget(**{**fields, "capability": (int(major), int(minor))})


Target = CpuTarget | CudaTarget

_KIB, _MIB = 1 << 10, 1 << 20
#: GPUs that a plan can be built for without having one, by the name after "cuda:".
_KNOWN = {
    "sm80": CudaTarget("cuda", "a100", (8, 0), 108, 163 * _KIB, 40 * _MIB, 80),
    "sm86": CudaTarget("cuda", "a10", (8, 6), 72, 99 * _KIB, 6 * _MIB, 24),
    "sm89": CudaTarget("cuda", "l4", (8, 9), 58, 99 * _KIB, 48 * _MIB, 24),
    "sm90": CudaTarget("cuda", "h200", (9, 0), 132, 227 * _KIB, 60 * _MIB, 140),
    "sm100": CudaTarget("cuda", "b200", (10, 0), 148, 227 * _KIB, 126 * _MIB, 180),
}


def sources_of(name: str) -> tuple[str, ...]:
    """The tactic sources of a target called ``name``."""
    return CUDA_SOURCES if name.split(":")[0] == "cuda" else CPU_SOURCES


def describe(name: str = "cpu") -> Target:
    """The target called ``name``: "cpu", "cuda" or "cuda:1" as found here, or "cuda:sm90".

    Raises OptionError for an unknown name and DeviceError when there is no such GPU here.
    """
    kind, _, which = name.partition(":")
    if kind == "cuda" and which in _KNOWN:
        return _KNOWN[which]
    if kind == "cuda" and (not which or which.isdigit()):
        return _probed(int(which or 0))
    if name != "cpu":
        known = ", ".join(f"cuda:{item}" for item in _KNOWN)
        raise OptionError(f"there is no target {name!r}; expected cpu, cuda, cuda:INDEX, {known}")
    from engine.kernels.isa import detect
    from engine.kernels.runner import default_threads

    return CpuTarget("cpu", detect().name, default_threads())


@functools.cache
def _probed(index: int) -> CudaTarget:
    from engine.cuda.device import probe

    return probe(index)


def check_target(wanted: Mapping[str, Any]) -> None:
    """Raise TargetMismatchError when this machine cannot run a plan for that target."""
    if wanted.get("vendor") == "cuda":
        _check_cuda(CudaTarget.from_json(wanted))
        return
    from engine.kernels.isa import detect

    here = detect().name
    if wanted.get("vendor") != "cpu" or wanted.get("isa") not in _RUNS[here]:
        raise TargetMismatchError(
            f"the plan was built for {wanted.get('vendor')} {wanted.get('isa')}, this machine is "
            f"cpu {here}; build the model for this machine"
        )


def _check_cuda(wanted: CudaTarget) -> None:
    """Up to 8.9 machine code also runs on later minor capabilities, from 9.0 on its own alone."""
    here = _probed(0)
    older = here.capability[0] == wanted.capability[0] < 9
    if here.capability < wanted.capability or not (older or here.capability == wanted.capability):
        raise TargetMismatchError(
            f"the plan was built for {wanted.architecture} ({wanted.name}), the GPU here is "
            f"{here.architecture} ({here.name}); build the model for this GPU"
        )
