"""Kernels in front of cuDNN's do not let the next kernel begin early.

Kernels of ours allow what follows to begin before they end, since whatever follows waits before it
reads. Some of cuDNN's kernels (precompiled convolutions of 9.19 on Hopper) are launched
programmatically and do not wait: behind an early start they read what is not written yet. So the
kernel in front of a call of cuDNN is one that ends first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.lower.builder import ProgramBuilder
from engine.plan.device import LaunchStep, LibraryStep
from engine.plan.structure import ChooseStep, Step

__all__ = ["hold_back"]


def hold_back(builder: ProgramBuilder) -> dict[int, int]:
    """Exchange kernels in front of calls of cuDNN; new kernels by index, and which they replace."""
    made: dict[int, int] = {}
    builder.steps[:] = _held(builder, builder.steps, made, eager=False)
    return {new: old for old, new in made.items()}


def _held(
    builder: ProgramBuilder, steps: Sequence[Step], made: dict[int, int], *, eager: bool
) -> list[Step]:
    """Steps with exchanges; ``eager`` says that what follows them may be a call of cuDNN."""
    result: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, ChooseStep):
            cases = tuple(
                (guards, tuple(_held(builder, chosen, made, eager=eager)))
                for guards, chosen in step.cases
            )
            result.append(ChooseStep(cases))
        elif isinstance(step, LaunchStep) and eager:
            result.append(replace(step, function=_quiet(builder, step.function, made)))
        else:
            result.append(step)
        eager = _begins_eagerly(step) or (eager and _may_be_empty(step))
    return result[::-1]


def _begins_eagerly(step: Step) -> bool:
    if isinstance(step, ChooseStep):
        return any(chosen and _begins_eagerly(chosen[0]) for _, chosen in step.cases)
    return isinstance(step, LibraryStep) and step.library == "cudnn"


def _may_be_empty(step: Step) -> bool:
    """Whether nothing is enqueued for a step at some sizes: then its neighbours meet."""
    if isinstance(step, LaunchStep):
        return not all(isinstance(size, int) and size > 0 for size in step.grid)
    return isinstance(step, ChooseStep)


def _quiet(builder: ProgramBuilder, index: int, made: dict[int, int]) -> int:
    """The index of a kernel that ends before the next begins."""
    if index not in made:
        kernel = builder.device_kernels[index].quiet()
        if kernel.digest == builder.device_kernels[index].digest:
            made[index] = index
        else:
            builder.device_kernels.append(kernel)
            made[index] = len(builder.device_kernels) - 1
    return made[index]
