"""Regions on a GPU by generated CUDA C."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from engine.cuda.region import RegionChoice, check, fitted, generate
from engine.cuda.region_choices import choices
from engine.cuda.size_text import symbol_ranges
from engine.ir.graph import Node
from engine.kernels.region_lowering import simplified
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import lies_in_place, restride_load, restride_store
from engine.ops.region import Load, Region, Store
from engine.plan.device import Pointer
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcRegion", "emit_region", "launch_region"]


class NvrtcRegion:
    """Serves every region whose element types CUDA C knows."""

    name = "nvrtc.region"
    kinds = ("Region",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """A candidate for each way to spread the region over threads that is worth measuring."""
        assert isinstance(node.op, Region)
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no GPU")
        try:
            check(node.op)
        except ValueError as error:
            return Refusal(self.name, str(error))
        return [_candidate(choice) for choice in choices(simplified(node.op), point, target)]


def _candidate(choice: RegionChoice) -> Candidate:
    return Candidate(
        NvrtcRegion.name,
        choice.to_json(),
        lambda builder, node, layer: emit_region(builder, node, layer, choice),
        strided=True,
    )


def emit_region(builder: ProgramBuilder, node: Node, layer: int, choice: RegionChoice) -> None:
    """The one launch of a region: its inputs, then its outputs, some of them in slices."""
    if lies_in_place(node, builder.placed):
        return
    op = node.op
    assert isinstance(op, Region)
    region = _in_slices(builder, node, op)
    slots = [-1 if value is None else builder.location(value)[0] for value in node.inputs]
    constants = frozenset(
        place
        for place, value in enumerate(node.inputs)
        if value is not None and value.constant is not None
    )
    outputs = [builder.location(value)[0] for value in node.outputs]
    launch_region(builder, region, choice, slots, outputs, layer, constants)


def launch_region(
    builder: ProgramBuilder,
    region: Region,
    choice: RegionChoice,
    inputs: Sequence[int],
    outputs: Sequence[int],
    layer: int,
    constants: frozenset[int] = frozenset(),
) -> None:
    """Launch a region whose operands and outputs lie in the given slots."""
    region = simplified(region)
    ranges = symbol_ranges(builder.symbols)
    made = generate(region, fitted(region, choice), constants=constants, ranges=ranges)
    pointers = [Pointer(inputs[place]) for place in made.inputs]
    pointers += [Pointer(slot, writes=True) for slot in outputs]
    builder.launch(made.kernel, made.grid, [*pointers, *made.scalars], layer)


Access = TypeVar("Access", Load, Store)


def _in_slices(builder: ProgramBuilder, node: Node, op: Region) -> Region:
    """The region with the accesses of tensors that lie in slices changed."""
    loads, stores = list(op.loads), list(op.stores)
    for index, load in enumerate(loads):
        value = node.inputs[load.operand]
        if value is not None and id(value) in builder.placed:
            _, offset, pixel = builder.location(value)
            loads[index] = _found(restride_load(load, value.tensor.dims[-1], pixel, offset))
    for index, store in enumerate(stores):
        value = node.outputs[store.output]
        if id(value) in builder.placed:
            _, offset, pixel = builder.location(value)
            stores[index] = _found(restride_store(store, value.tensor.dims[-1], pixel, offset))
    return dataclasses.replace(op, loads=tuple(loads), stores=tuple(stores))


def _found(access: Access | None) -> Access:
    """An access that was checked when its tensor was placed."""
    assert access is not None
    return access


register(NvrtcRegion())
