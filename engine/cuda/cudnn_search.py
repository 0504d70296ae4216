"""Asking cuDNN, on the device, which engines it would try for a layer."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.cuda.cudnn_calls import MOST_ENGINE, Call, EngineChoice
from engine.cuda.cudnn_graph import (
    CudnnGraphs,
    brief_error,
    build_graph,
    frontend,
    graph_errors,
)
from engine.cuda.device import open_device
from engine.cuda.libraries import why_no_device
from engine.errors import DeviceError, KernelError, MissingExtraError
from engine.target import CudaTarget

__all__ = ["engines", "listed"]

MOST_ENGINES = 4
MOST_WORKSPACE = 256 << 20


@functools.cache
def _library() -> CudnnGraphs:
    """One handle for all questions of this process, on its first device."""
    open_device(0).use()
    return CudnnGraphs()


def engines(
    call: Call, sizes: Mapping[str, int], target: CudaTarget, most: int = MOST_ENGINES
) -> Sequence[EngineChoice] | str:
    """At most ``most`` engines for a layer, the likeliest first, or why there are none.

    Starts CUDA in this process when there is a device, and builds each engine to learn its
    workspace.
    """
    reason = why_no_device(target)
    if reason:
        return reason
    key = json.dumps([call.to_json(), sizes, most], sort_keys=True)
    return _remembered(key, call, sizes, most)


_ANSWERS: dict[str, Sequence[EngineChoice] | str] = {}


def _remembered(
    key: str, call: Call, sizes: Mapping[str, int], most: int
) -> Sequence[EngineChoice] | str:
    """The answer for a layer; networks repeat theirs."""
    if key not in _ANSWERS:
        try:
            library = _library()
            open_device(0).use()  # the library may have been opened by another thread
            _ANSWERS[key] = _ask(library, call, sizes, most)
        except (DeviceError, KernelError, MissingExtraError) as error:
            return str(error)
    return _ANSWERS[key]


def _ask(
    library: CudnnGraphs, call: Call, sizes: Mapping[str, int], most: int
) -> Sequence[EngineChoice] | str:
    """What the library recommends, or what it falls back to when it recommends nothing."""
    modes = frontend().heur_mode
    reason = ""
    with library.lock:
        for mode in (modes.A, modes.FALLBACK):
            try:
                graph, choices = listed(call, sizes, mode, library.handle)
            except graph_errors() as error:
                reason = brief_error(error)
                continue
            found: list[EngineChoice] = []
            for index, (engine, knobs) in choices:
                try:
                    graph.build_plan_at_index(index)
                    nbytes = int(graph.get_workspace_size_plan_at_index(index))
                except graph_errors() as error:
                    reason = brief_error(error)
                    continue
                if nbytes <= MOST_WORKSPACE:
                    found.append(EngineChoice(engine, knobs, nbytes, library.version))
                if len(found) == most:
                    break
            if found:
                return found
    return f"cuDNN has no engine for this layer ({reason or 'none fits its workspace'})"


def listed(
    call: Call, sizes: Mapping[str, int], mode: Any, handle: Any = None, **options: Any
) -> tuple[Any, list[tuple[int, tuple[int, dict[str, int]]]]]:
    """A graph, and (index, (engine, knobs)) of what the heuristics propose, the likeliest first.

    Engines whose results differ from run to run, or that round inputs or sums to narrower types,
    are left out, as are those that are Python code of the frontend. Knobs that the frontend has no
    name for cannot be set again; they keep their defaults, and what differs in them only is one.
    """
    graph, _ = build_graph(call, sizes, handle, **options)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([mode])
    notes = frontend().numerical_note
    unwanted = [
        notes.NONDETERMINISTIC,
        notes.DOWN_CONVERT_INPUTS,
        notes.REDUCED_PRECISION_REDUCTION,
    ]
    graph.deselect_numeric_notes(unwanted)
    choices: list[tuple[int, tuple[int, dict[str, int]]]] = []
    for index in range(graph.get_execution_plan_count()):
        try:
            engine, knobs = graph.get_engine_and_knobs_at_index(index)
        except NotImplementedError:  # the backend would choose by itself
            continue
        if 0 <= engine <= MOST_ENGINE:
            named = {knob.name: int(value) for knob, value in (knobs or {}).items()}
            named.pop("NOT_SET", None)
            if all(known != (int(engine), named) for _, known in choices):
                choices.append((index, (int(engine), named)))
    return graph, choices
