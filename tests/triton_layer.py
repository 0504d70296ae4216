"""One layer of Triton kernels: a candidate's launches in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.cuda.kernel import DeviceKernel
from engine.ir.graph import Graph, Node
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import Placement
from engine.plan.device import LaunchStep, Pointer, TensorMap
from engine.plan.structure import Slot, Symbol
from engine.tactics.tactic import Candidate
from tests.cuda_layer import _view, filled
from tests.triton_shim import run_step

__all__ = ["emit", "interpret_candidate"]


def emit(
    graph: Graph,
    node: Node,
    candidate: Candidate,
    *,
    placed: Mapping[int, Placement] | None = None,
    symbols: Sequence[Symbol] = (),
) -> ProgramBuilder:
    """The launches that a candidate writes, in a program of its own."""
    builder = ProgramBuilder(graph, symbols, placed=dict(placed or {}))
    values = [value for value in node.inputs if value is not None] + node.outputs
    for value in [*values, *(item.root for item in builder.placed.values())]:
        if value.constant is None and id(value) not in builder.placed:
            if not builder.has_slot(value):
                builder.set_slot(value, builder.add_slot(Slot(value.type, "arena")))
    candidate.emit(builder, node, builder.layer(node, candidate.tactic, candidate.choice))
    return builder


def interpret_candidate(
    graph: Graph,
    node: Node,
    candidate: Candidate,
    point: Mapping[str, int] | None = None,
    *,
    placed: Mapping[int, Placement] | None = None,
    symbols: Sequence[Symbol] = (),
) -> Any:
    """The output of a layer; what is not said to be written is unchanged, counters end at zero."""
    point = point or {}
    builder = emit(graph, node, candidate, placed=placed, symbols=symbols)
    arrays = filled(builder, node, point)
    for step in builder.steps:
        assert isinstance(step, LaunchStep)
        written = {
            item.slot
            for item in step.parameters
            if isinstance(item, (Pointer, TensorMap)) and item.writes
        }
        before = [array.tobytes() for array in arrays]
        kernel = _plain(builder.device_kernels[step.function])
        run_step(step, kernel, dict(enumerate(arrays)), point)
        for slot, (array, held) in enumerate(zip(arrays, before)):
            assert slot in written or array.tobytes() == held, f"slot {slot} was written unsaid"
    for slot, array in zip(builder.slots, arrays):
        assert slot.place != "zeros" or not array.any(), "counters are not left at zero"
    return np.array(_view(builder, arrays, node.outputs[0], point))


def _plain(kernel: DeviceKernel) -> DeviceKernel:
    """The kernel without waiting for other kernels, which the interpreter has no word for."""
    constants = tuple(
        (name, False if name == "WAITS" else value) for name, value in kernel.constants
    )
    return replace(kernel, constants=constants)
