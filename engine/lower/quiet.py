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
    steps, begins = _held(builder, builder.steps, made, eager=False)
    if begins:  # what runs again and again meets its own beginning
        steps, _ = _held(builder, steps, made, eager=True)
    builder.steps[:] = steps
    return {new: old for old, new in made.items()}


def _held(
    builder: ProgramBuilder, steps: Sequence[Step], made: dict[int, int], *, eager: bool
) -> tuple[list[Step], bool]:
    """Steps with exchanges, and whether they may begin with a call of cuDNN.

    ``eager`` says that what follows them may.
    """
    result: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, ChooseStep):
            held = [_held(builder, chosen, made, eager=eager) for _, chosen in step.cases]
            guards = (guards for guards, _ in step.cases)
            result.append(ChooseStep(tuple(zip(guards, (tuple(found) for found, _ in held)))))
            eager = any(begins for _, begins in held)
            continue
        if isinstance(step, LaunchStep) and eager:
            step = replace(step, function=_quiet(builder, step.function, made))
        result.append(step)
        calls = isinstance(step, LibraryStep) and step.library == "cudnn"
        eager = calls or (eager and _may_be_empty(step))
    return result[::-1], eager


def _may_be_empty(step: Step) -> bool:
    """Whether nothing is enqueued for a step at some sizes: then its neighbours meet."""
    return isinstance(step, LaunchStep) and not all(
        isinstance(size, int) and size > 0 for size in step.grid
    )


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
