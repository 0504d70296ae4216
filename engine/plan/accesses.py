"""Which slots a step touches, and which of them it writes."""

from __future__ import annotations

from engine.ir.sizes import Dim
from engine.plan.device import ClearStep, LaunchStep, LibraryStep, Pointer, TensorMap
from engine.plan.structure import FlatStep, HostStep, KernelStep

__all__ = ["Access", "step_accesses", "touched_slots"]

#: Slot, offset in elements, whether the step writes there.
Access = tuple[int, Dim, bool]


def step_accesses(step: LaunchStep | LibraryStep | ClearStep) -> list[Access]:
    """What a device step reads and writes, its workspace included."""
    if isinstance(step, ClearStep):
        return [(step.slot, 0, True)]
    if isinstance(step, LibraryStep):
        found: list[Access] = [(item.slot, item.offset, item.writes) for item in step.operands]
        if step.workspace is not None:
            found.append((step.workspace, 0, True))
        return found
    return [
        (item.slot, item.offset, item.writes)
        for item in step.parameters
        if isinstance(item, (Pointer, TensorMap))
    ]


def touched_slots(step: FlatStep) -> list[int]:
    """The slots whose memory must be there while a step runs."""
    if isinstance(step, KernelStep):
        return [slot for slot, _ in step.operands]
    if isinstance(step, HostStep):
        return [slot for slot in (*step.inputs, *step.outputs) if slot is not None]
    return [slot for slot, _, _ in step_accesses(step)]
