"""Asking cuBLASLt, on the device, which algorithms it would try for a product."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.cuda.cublaslt import CublasLt, MatmulCall, MatmulSizes
from engine.cuda.device import open_device
from engine.cuda.libraries import why_no_device
from engine.errors import DeviceError, KernelError, MissingExtraError
from engine.target import CudaTarget

__all__ = ["FoundAlgorithm", "heuristics"]

#: Candidates of one layer, and how many the library is asked for to find that many distinct ones.
MOST_ALGORITHMS, MOST_ASKED = 5, 16
#: The vendor's own advice for compute capability 9.0.
MOST_WORKSPACE = 32 << 20


@dataclass(frozen=True, slots=True)
class FoundAlgorithm:
    """An algorithm as a plan stores it, and what the library tells of it in its own numbers."""

    algorithm: str
    workspace_nbytes: int
    version: int
    id: int = 0
    tile: int = 0
    stages: int = 0
    split_k: int = 0

    def to_json(self) -> dict[str, Any]:
        """A candidate's choice."""
        return asdict(self)


@functools.cache
def _library() -> CublasLt:
    """One handle for all questions of this process, on its first device."""
    open_device(0).use()
    return CublasLt()


def heuristics(
    call: MatmulCall, sizes: MatmulSizes, target: CudaTarget
) -> Sequence[FoundAlgorithm] | str:
    """Algorithms for a product, the likeliest first, or why there are none.

    Starts CUDA in this process when there is a device.
    """
    reason = why_no_device(target)
    if reason:
        return reason
    try:
        return _ask(call, sizes) or "cuBLASLt has no algorithm for these sizes and this epilogue"
    except (DeviceError, KernelError, MissingExtraError) as error:
        return str(error)


@functools.lru_cache(maxsize=1024)
def _ask(call: MatmulCall, sizes: MatmulSizes) -> tuple[FoundAlgorithm, ...]:
    library = _library()
    open_device(0).use()  # the library may have been opened by another thread
    found: dict[str, FoundAlgorithm] = {}
    for result in library.heuristics(call, sizes, MOST_ASKED, MOST_WORKSPACE):
        digits = bytes(result.algorithm).hex()
        known = library.configuration(result.algorithm)
        nbytes = int(result.workspace_nbytes)
        found.setdefault(digits, FoundAlgorithm(digits, nbytes, library.version, **known))
    return tuple(found.values())[:MOST_ALGORITHMS]
