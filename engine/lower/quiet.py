"""Kernels in front of cuDNN's do not let the next kernel begin early.

Kernels of ours allow what follows to begin before they end, since whatever follows waits before it
reads. Some of cuDNN's kernels (precompiled convolutions of 9.19 on Hopper) are launched
programmatically and do not wait: behind an early start they read what is not written yet. So the
kernel in front of a call of cuDNN is one that ends first. Where lanes meet, so may be several.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from engine.lower.builder import ProgramBuilder
from engine.plan.device import LaunchStep, LibraryStep
from engine.plan.lanes import lane_of
from engine.plan.structure import ChooseStep, Step

__all__ = ["hold_back"]


def hold_back(builder: ProgramBuilder, crossing: Collection[int] = ()) -> dict[int, int]:
    """Exchange kernels in front of calls of cuDNN; new kernels by index, and which they replace.

    ``crossing`` are positions of steps that steps of other lanes wait for. In a program with lanes
    and calls of cuDNN they end first, too, and so do all kernels of auxiliary lanes and what ends
    the program: each of them may stand in front of a call.
    """
    made: dict[int, int] = {}
    steps = builder.steps
    main = [at for at, step in enumerate(steps) if not _lane(step)]
    parts = len(main) < len(steps) and _calls(steps)
    held, begins = _held(builder, [steps[at] for at in main], made, eager=parts)
    if begins:  # what runs again and again meets its own beginning
        held, _ = _held(builder, held, made, eager=True)
    for end in (place for place, at in enumerate(main, 1) if parts and at in crossing):
        held[:end], _ = _held(builder, held[:end], made, eager=True)
    exchanged = dict(zip(main, held))
    for at, step in enumerate(steps):
        if at not in exchanged:
            exchanged[at] = _silenced(builder, step, made) if parts else step
    builder.steps[:] = [exchanged[at] for at in range(len(steps))]
    return {new: old for old, new in made.items()}


def _lane(step: Step) -> int:
    """The lane of a step; cases are all on one."""
    if isinstance(step, ChooseStep):
        return max((_lane(item) for _, chosen in step.cases for item in chosen), default=0)
    return lane_of(step)


def _calls(steps: Sequence[Step]) -> bool:
    """Whether cuDNN is called anywhere in the steps."""
    return any(
        any(_calls(chosen) for _, chosen in step.cases)
        if isinstance(step, ChooseStep)
        else isinstance(step, LibraryStep) and step.library == "cudnn"
        for step in steps
    )


def _silenced(builder: ProgramBuilder, step: Step, made: dict[int, int]) -> Step:
    """The step with every kernel in it exchanged."""
    if isinstance(step, ChooseStep):
        cases = (
            (guards, tuple(_silenced(builder, item, made) for item in chosen))
            for guards, chosen in step.cases
        )
        return ChooseStep(tuple(cases))
    if isinstance(step, LaunchStep):
        return replace(step, function=_quiet(builder, step.function, made))
    return step


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
    if index in made.values():
        return index
    if index not in made:
        kernel = builder.device_kernels[index].quiet()
        if kernel.digest == builder.device_kernels[index].digest:
            made[index] = index
        else:
            builder.device_kernels.append(kernel)
            made[index] = len(builder.device_kernels) - 1
    return made[index]
