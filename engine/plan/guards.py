"""Whether the guards of a case hold for given sizes, and which steps run at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engine.ir.sizes import evaluate
from engine.plan.structure import ChooseStep, FlatStep, Guard, Step

__all__ = ["choose", "flat_steps", "hold"]


def hold(guards: Sequence[Guard], bindings: Mapping[str, int]) -> bool:
    """Whether all guards hold; KeyError names a symbol without a value. Zero divides nothing."""
    for guard in guards:
        left, right = evaluate(guard.left, bindings), evaluate(guard.right, bindings)
        if guard.relation == "<=":
            holds = left <= right
        elif guard.relation == "==":
            holds = left == right
        else:
            holds = left != 0 and right % left == 0
        if not holds:
            return False
    return True


def choose(step: ChooseStep, bindings: Mapping[str, int]) -> tuple[Step, ...]:
    """The steps of the first case whose guards hold."""
    return next(steps for guards, steps in step.cases if hold(guards, bindings))


def flat_steps(steps: Sequence[Step], sizes: Mapping[str, int]) -> Iterator[FlatStep]:
    """The steps that run for these sizes, with every choice made."""
    for step in steps:
        if isinstance(step, ChooseStep):
            yield from flat_steps(choose(step, sizes), sizes)
        else:
            yield step
