"""Any operator by its meaning in NumPy: a rival to generated C, and the step of last resort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.lower.builder import ProgramBuilder
from engine.ops.reference import Reference
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["NumpyMeaning"]


class NumpyMeaning:
    """Serves every node that is no view, has no bodies and has a meaning here."""

    name = "numpy.meaning"
    kinds: tuple[str, ...] = ()

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate."""
        if node.kind == "View" or node.bodies or isinstance(node.op, Reference):
            return Refusal(self.name, "lowering has a form of its own for it")
        return [Candidate(self.name, {}, emit_meaning)]


def emit_meaning(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """One host step."""
    builder.meaning(node, layer)


register(NumpyMeaning())
