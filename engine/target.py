"""Targets: a device as far as a build depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import OptionError, TargetMismatchError

__all__ = ["Target", "check_target", "describe"]

#: What an instruction set can also run.
_RUNS = {
    "avx512": ("avx512", "avx2", "generic"),
    "avx2": ("avx2", "generic"),
    "neon": ("neon", "generic"),
    "generic": ("generic",),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A device class: its vendor, instruction set and threads."""

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


def describe(name: str = "cpu") -> Target:
    """The target called ``name`` as found on this machine; OptionError for an unknown name."""
    from engine.kernels.isa import detect
    from engine.kernels.runner import default_threads

    if name != "cpu":
        raise OptionError(f"there is no target {name!r}; expected cpu")
    return Target("cpu", detect().name, default_threads())


def check_target(wanted: Mapping[str, Any]) -> None:
    """Raise TargetMismatchError when this machine cannot run a plan for that target."""
    from engine.kernels.isa import detect

    here = detect().name
    if wanted.get("vendor") != "cpu" or wanted.get("isa") not in _RUNS[here]:
        raise TargetMismatchError(
            f"the plan was built for {wanted.get('vendor')} {wanted.get('isa')}, this machine is "
            f"cpu {here}; build the model for this machine"
        )
