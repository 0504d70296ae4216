"""Regions by generated C."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from engine.ir.graph import Node
from engine.ir.sizes import Dim
from engine.kernels.region_lowering import kernel_of
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import lies_in_place, restride_load, restride_store
from engine.ops.region import Load, Region, Store
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["CRegion"]


class CRegion:
    """Serves every region whose element types C knows."""

    name = "c.region"
    kinds = ("Region",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate: the region's own kernel."""
        assert isinstance(node.op, Region)
        try:
            kernel_of(node.op)
        except ValueError as error:
            return Refusal(self.name, str(error))
        return [Candidate(self.name, {}, emit_region, strided=True)]


def emit_region(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """The one step of a region: its inputs, then its outputs, some of them in slices."""
    if lies_in_place(node, builder.placed):
        return
    op = node.op
    assert isinstance(op, Region)
    kernel, sizes = kernel_of(_in_slices(builder, node, op))
    operands: list[tuple[int, Dim]] = [
        (builder.location(value)[0], 0)
        for value in (*node.inputs, *node.outputs)
        if value is not None
    ]
    builder.kernel(kernel, operands, sizes, layer)


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


Access = TypeVar("Access", Load, Store)


def _found(access: Access | None) -> Access:
    """An access that was checked when its tensor was placed."""
    assert access is not None
    return access


register(CRegion())
