"""What fusion leaves of elementwise operators, by regions of one node: scalars, casts to a type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.region import RegionChoice, check
from engine.cuda.region_choices import choices
from engine.ir.graph import Node
from engine.ir.sizes import Dim, product
from engine.kernels.region_lowering import simplified
from engine.lower.builder import ProgramBuilder
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import load, loads, substitute
from engine.ops.region import Load, Region, Store
from engine.tactics.nvrtc_region import launch_region
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcScalar", "elementwise_region"]


class NvrtcScalar:
    """Serves elementwise operators whose inputs are single elements or have the output's shape."""

    name = "nvrtc.scalar"
    kinds: tuple[str, ...] = ()

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """A candidate for each way to spread the elements over threads."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no GPU")
        if not isinstance(node.op, ElementwiseOperator):
            return Refusal(self.name, "it is no elementwise operator")
        try:
            region = elementwise_region(node)
            check(region)
        except ValueError as error:
            return Refusal(self.name, str(error))
        return [
            self._candidate(region, choice) for choice in choices(simplified(region), point, target)
        ]

    def _candidate(self, region: Region, choice: RegionChoice) -> Candidate:
        def emit(builder: ProgramBuilder, node: Node, layer: int) -> None:
            read = {item.operand for item in region.loads}
            slots = [
                builder.slot(value) if value is not None and place in read else -1
                for place, value in enumerate(node.inputs)
            ]
            launch_region(builder, region, choice, slots, [builder.slot(node.outputs[0])], layer)

        return Candidate(self.name, choice.to_json(), emit)


def elementwise_region(node: Node) -> Region:
    """The operator over all elements in a row; ValueError says why there is none."""
    op, result = node.op, node.outputs[0].tensor
    assert isinstance(op, ElementwiseOperator)
    kinds = [None if value is None else value.tensor for value in node.inputs]
    value = op.expression(*(None if k is None else load(i, k.dtype) for i, k in enumerate(kinds)))
    found = []
    for place, dtype in loads(value).items():
        kind = kinds[place]
        assert kind is not None
        whole = kind.dims == result.dims or product(kind.dims) == product(result.dims)
        if not whole and product(kind.dims) != 1:
            raise ValueError(f"input {place} is broadcast from {kind} to {result}")
        step: Dim = 1 if whole else 0
        found.append(Load(place, dtype, 0, (step,)))
    if value.dtype is not result.dtype:
        raise ValueError(f"the result is {value.dtype.value}, expected {result.dtype.value}")
    # Loads are numbered by their place in the region, operands by that in the node.
    places = {item.operand: load(place, item.dtype) for place, item in enumerate(found)}
    renamed = substitute(value, places)
    store = Store(renamed, 0, result.dims, 0, (1,))
    return Region((product(result.dims),), tuple(found), (store,))


register(NvrtcScalar())
