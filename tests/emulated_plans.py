"""Plans for an emulated GPU: assembled as for a real one, their kernels kept as CUDA C.

The GPU has compute capability 10.0: launches overlap there, and no kernel is in machine words of
Hopper's, which the host shim does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import engine
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.plan.plan import Plan
from engine.runtime.cuda_engine import CudaEngine
from engine.target import CudaTarget, describe
from tests.emulated_device import EmulatedDevice, image_of

__all__ = ["emulated", "emulated_gpu", "emulated_plan", "kept_as_source"]

TARGET = "cuda:sm100"


def kept_as_source(kernels: Sequence[DeviceKernel]) -> list[Compiled]:
    """What a compiler gives, with the kernel itself as the image."""
    return [
        Compiled(
            image_of(item),
            item.entry,
            item.threads,
            item.shared_nbytes,
            cluster=item.cluster,
            maps=item.maps,
            waits=item.waits,
        )
        for item in kernels
    ]


def emulated_plan(
    model: Any,
    *,
    tactics: Sequence[str] = ("nvrtc",),
    shapes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """The plan of a model for the emulated GPU, the first candidate of every layer."""
    with patch("engine.building.device_compiler", lambda target: kept_as_source):
        return engine.build(
            model, target=TARGET, tactics=tactics, shapes=shapes, level=0, **options
        )


def emulated_gpu() -> EmulatedDevice:
    """The GPU that the plans are for."""
    target = describe(TARGET)
    assert isinstance(target, CudaTarget)
    return EmulatedDevice(target=target)


def emulated(plan: Plan, device: EmulatedDevice | None = None) -> CudaEngine:
    """An engine of a plan on an emulated GPU."""
    found = engine.load(plan, device=device or emulated_gpu())
    assert isinstance(found, CudaEngine)
    return found
