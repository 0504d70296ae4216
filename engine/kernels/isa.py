"""Instruction sets that the C printers know, and which one this machine has."""

from __future__ import annotations

import functools
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ISAS", "Isa", "compiler_flags", "cpu_features", "detect"]


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set: its name, floats per vector register, number of vector registers."""

    name: str
    vector_floats: int
    registers: int


ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512", 16, 32),
        Isa("avx2", 8, 16),
        Isa("neon", 4, 32),
        Isa("generic", 4, 16),
    )
}

_NEEDS = {
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx2", "fma", "f16c"),
    "avx2": ("avx2", "fma", "f16c"),
}
_PRECISE = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_OUTPUT = ("-std=gnu11", "-fPIC", "-shared", "-fvisibility=default", "-w")


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """The processor's feature flags that matter to a compiler, sorted."""
    known = {flag for flags in _NEEDS.values() for flag in flags}
    if sys.platform != "linux":
        return ()
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return tuple(sorted(known & set(flags.split())))
    return ()


@functools.cache
def detect() -> Isa:
    """The widest instruction set of this machine that the printers know."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return ISAS["neon"]
    if machine in ("x86_64", "amd64"):
        for name in ("avx512", "avx2"):
            if set(_NEEDS[name]) <= set(cpu_features()):
                return ISAS[name]
    return ISAS["generic"]


def compiler_flags(isa: Isa) -> tuple[str, ...]:
    """What to tell gcc or clang: exact NaN rules, contraction into FMA, the vector width."""
    flags: tuple[str, ...] = _PRECISE + _OUTPUT
    if isa.name == "avx512":
        flags += ("-mprefer-vector-width=512",)
    return flags + tuple(f"-m{feature}" for feature in _NEEDS.get(isa.name, ()))
