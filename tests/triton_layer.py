"""One layer of Triton kernels on the host: a candidate's launches run by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engine.ir.graph import Graph, Node
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import Placement
from engine.plan.device import LaunchStep
from engine.plan.structure import Slot, Symbol
from engine.tactics.tactic import Candidate
from tests.cuda_layer import _data, _memory, _view
from tests.triton_shim import run_step

__all__ = ["emit", "interpret_candidate"]


def emit(
    graph: Graph,
    node: Node,
    candidate: Candidate,
    *,
    placed: Mapping[int, Placement] | None = None,
    symbols: tuple[Symbol, ...] = (),
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
    symbols: tuple[Symbol, ...] = (),
) -> Any:
    """The output of a layer; memory that nobody has written is poison, counters end at zero."""
    point = point or {}
    builder = emit(graph, node, candidate, placed=placed, symbols=symbols)
    arrays = {index: _memory(builder, slot, point) for index, slot in enumerate(builder.slots)}
    listed = list(arrays.values())
    for value in node.inputs:
        if value is not None and value.constant is None:
            _view(builder, listed, value, point)[...] = _data(value)
    for step in builder.steps:
        assert isinstance(step, LaunchStep)
        run_step(step, _plain(builder.device_kernels[step.function]), arrays, point)
    for index, slot in enumerate(builder.slots):
        assert slot.place != "zeros" or not arrays[index].any(), "counters are not left at zero"
    return np.array(_view(builder, listed, node.outputs[0], point))


def _plain(kernel: Any) -> Any:
    """The kernel without waiting for other kernels, which the interpreter has no word for."""
    constants = tuple(
        (name, False if name == "WAITS" else value) for name, value in kernel.constants
    )
    return replace(kernel, constants=constants)
