"""Plans for an emulated GPU: assembled as for a real one, their kernels kept as CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import engine
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.plan.plan import Plan
from engine.runtime.cuda_engine import CudaEngine
from tests.emulated_device import EmulatedDevice, image_of

__all__ = ["emulated", "emulated_plan", "kept_as_source"]


def kept_as_source(kernels: Sequence[DeviceKernel]) -> list[Compiled]:
    """What a compiler gives, with the kernel itself as the image."""
    return [
        Compiled(image_of(item), item.entry, item.threads, item.shared_nbytes, waits=item.waits)
        for item in kernels
    ]


def emulated_plan(
    model: Any,
    *,
    tactics: Sequence[str] = ("nvrtc",),
    shapes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """The plan of a model for compute capability 9.0, the first candidate of every layer."""
    with patch("engine.building.device_compiler", lambda target: kept_as_source):
        return engine.build(
            model, target="cuda:sm90", tactics=tactics, shapes=shapes, level=0, **options
        )


def emulated(plan: Plan, device: EmulatedDevice | None = None) -> CudaEngine:
    """An engine of a plan on an emulated GPU."""
    found = engine.load(plan, device=device or EmulatedDevice())
    assert isinstance(found, CudaEngine)
    return found
