"""Whether the guards of a case hold for given sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.sizes import evaluate
from engine.plan.structure import ChooseStep, Guard, Step

__all__ = ["choose", "hold"]


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
