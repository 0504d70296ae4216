"""A build in three steps that may run in different processes: prepare, tune, assemble; and verify.

What passes between them is plain: paths, JSON, timing records as dictionaries. Reading and fusing a
model is deterministic, so a step that needs the graph makes it anew from the model's file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.building import CODEGEN, BuildOptions, assemble_plan, optimise, read_model
from engine.errors import (
    DeviceError,
    KernelError,
    MissingExtraError,
    OptionError,
    TargetMismatchError,
)
from engine.ir.digest import graph_digest
from engine.ir.graph import Graph
from engine.ir.types import DType, TensorType
from engine.ir.weights import check_weights
from engine.plan.structure import Program
from engine.profile import parse_shapes
from engine.target import describe
from engine.tune.records import TimingRecord

__all__ = [
    "Prepared",
    "TuningTask",
    "assemble",
    "device_index",
    "narrowest",
    "prepare",
    "target",
    "toolchain",
    "tune",
    "verify",
]

#: Largest error of an engine against its model's meaning, in units of the outputs' spread, by the
#: narrowest float that it computes with; five times what one layer of a GPU may err by.
TOLERANCES = {DType.FLOAT16: 1e-1, DType.BFLOAT16: 5e-1}
TOLERANCE = 5e-3


@dataclass(frozen=True, slots=True)
class TuningTask:
    """A layer to measure: its signature, and its name in the graph."""

    signature: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model made ready: the digest of its normalised graph, what later steps need, the tasks."""

    graph_digest: str
    blob: bytes
    tasks: tuple[TuningTask, ...]


def target(name: str = "cpu") -> dict[str, Any]:
    """The description of a target on this machine, as it enters a build key."""
    return describe(name).to_json()


def toolchain(name: str = "cpu") -> dict[str, Any]:
    """What else a plan's bytes depend on."""
    from engine.plugins import load_plugins
    from engine.tune.tuning import toolchain_digest

    return {"codegen": CODEGEN, "kernels": toolchain_digest(name), "plugins": list(load_plugins())}


def read_options(options: Mapping[str, Any]) -> BuildOptions:
    """Build options from their JSON form; OptionError names a wrong one."""
    defaults = BuildOptions()
    return BuildOptions(
        target=str(options.get("target", defaults.target)),
        precision=str(options.get("precision", defaults.precision)),
        level=int(options.get("level", defaults.level)),
        tactics=tuple(options.get("tactics", ())),
        reference=bool(options.get("reference", defaults.reference)),
        profile=parse_shapes(options.get("shapes")),
        lockfile=options.get("lockfile"),
        updates=_read_updates(options.get("updates")),
    )


def _read_updates(value: Any) -> dict[str, str]:
    """Names of outputs to names of inputs; OptionError for anything else."""
    pairs = {} if value is None else value
    if not isinstance(pairs, Mapping) or not all(
        isinstance(name, str) for pair in pairs.items() for name in pair
    ):
        raise OptionError(f"updates is {value!r}, expected names of outputs to names of inputs")
    return dict(pairs)


_LATEST: list[tuple[tuple[Any, ...], Graph]] = []


def _graph(model: Path, options: Mapping[str, Any]) -> tuple[Graph, BuildOptions]:
    """The optimised graph of a model; the latest one is kept for the next step."""
    read = read_options(options)
    status = model.stat()
    text = json.dumps(dict(options), sort_keys=True, default=str)
    key = (str(model), status.st_mtime_ns, status.st_size, text)
    if not _LATEST or _LATEST[0][0] != key:
        graph = read_model(model, read)
        check_weights(graph)
        _LATEST[:] = [(key, optimise(graph, read.precision))]
    return _LATEST[0][1], read


def prepare(model: str | Path, options: Mapping[str, Any]) -> Prepared:
    """Read and fuse a model, and list the layers of which more than one candidate is offered."""
    from engine.tune.tuning import tuning_tasks
    from engine.tune.whole_programs import whole_signature

    path = Path(model).resolve()
    if not path.is_file():
        read_model(path, read_options(options))  # says what is wrong with it
    graph, read = _graph(path, options)
    tasks = tuple(
        TuningTask(task.signature, {"node": task.node.name})
        for task in tuning_tasks(graph, read, ())
    )
    if _times_programs(read):
        tasks = (*tasks, TuningTask(whole_signature(graph, read), {"node": "the whole program"}))
    blob = json.dumps({"model": str(path), "options": dict(options)}, sort_keys=True).encode()
    return Prepared(graph_digest(graph), blob, tasks)


def _reopen(prepared: str | Path) -> tuple[Graph, BuildOptions]:
    fields = json.loads(Path(prepared).read_bytes())
    return _graph(Path(fields["model"]), fields["options"])


def tune(
    prepared: str | Path,
    tasks: Sequence[TuningTask],
    known: Sequence[Mapping[str, Any]],
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """Measure layers; yields timing records as dictionaries, ends early when told to stop."""
    from engine.tune.tuning import open_tuner, tuning_tasks
    from engine.tune.whole_programs import unmeasured_programs, whole_signature

    graph, options = _reopen(prepared)
    records = _usable(known, options)
    wanted = {task.signature for task in tasks}
    todo = [t for t in tuning_tasks(graph, options, records) if t.signature in wanted]
    whole = _times_programs(options) and whole_signature(graph, options) in wanted
    if not todo and not (whole and unmeasured_programs(graph, options, records)):
        return
    report({"done": 0, "total": len(todo), "layer": "compiling"})

    def compiled(done: int, kernels: int) -> None:
        layer = f"compiling, {done} of {kernels} kernels"
        report({"done": 0, "total": len(todo), "layer": layer})

    with open_tuner(options.target) as tuner:
        tuner.compile(todo, compiled)
        for index, task in enumerate(todo):
            if should_stop():
                return
            report({"done": index, "total": len(todo), "layer": task.node.name})
            for record in tuner.measure(task):
                records.append(record)
                yield record.to_json()
        # Where layers are measured in several jobs, the last step of the build does this.
        if whole and not should_stop() and not tuning_tasks(graph, options, records):
            report({"done": len(todo), "total": len(todo), "layer": "whole programs"})
            for record in tuner.measure_programs(graph, options, records):
                yield record.to_json()
    report({"done": len(todo), "total": len(todo)})


def _times_programs(options: BuildOptions) -> bool:
    """Whether a build measures whole programs, after its layers."""
    from engine.tune.tuning import is_described
    from engine.tune.whole_programs import LEAST_LEVEL

    gpu = options.target.partition(":")[0] == "cuda" and not is_described(options.target)
    return gpu and options.level >= LEAST_LEVEL


def _usable(records: Sequence[Mapping[str, Any]], options: BuildOptions) -> list[TimingRecord]:
    """What of known records counts for a build."""
    from engine.tune.tuning import usable_records

    return usable_records(map(TimingRecord.from_json, records), options.target)


def assemble(
    prepared: str | Path, records: Sequence[Mapping[str, Any]], output: str | Path
) -> dict[str, Any]:
    """Choose by the records, write the plan file, and report what is in it."""
    graph, options = _reopen(prepared)
    known = _usable(records, options)
    if _times_programs(options):
        known += _programs(graph, options, known)
    plan = assemble_plan(graph, options, known)
    plan.save(output)
    program = plan.program
    tactics: dict[str, int] = {}
    for layer in program.layers:
        tactics[layer.tactic] = tactics.get(layer.tactic, 0) + 1
    return {
        "layers": len(program.layers),
        "tactics": dict(sorted(tactics.items())),
        "kernels": len(program.kernels) + len(program.functions),
        "weights_nbytes": sum(w.dtype.nbytes * _count(w.shape) for w in program.weights),
        "requires": plan.requires,
        "fusions": sum(1 for item in graph.decisions if item.made),
    }


def _programs(graph: Graph, options: BuildOptions, known: list[TimingRecord]) -> list[TimingRecord]:
    """Records of whole programs that no job could make which had but some of the layers."""
    from engine.tune.tuning import open_tuner
    from engine.tune.whole_programs import unmeasured_programs

    if not unmeasured_programs(graph, options, known):
        return []
    with open_tuner(options.target) as tuner:
        return tuner.measure_programs(graph, options, known)


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def device_index(target: str) -> int:
    """The number of the GPU that a target's name means on this machine."""
    _, _, which = target.partition(":")
    return int(which) if which.isdigit() else 0


def narrowest(program: Program) -> DType | None:
    """The narrow float that a program computes with: bfloat16, float16, or None for neither."""
    kinds = {slot.type.dtype for slot in program.slots if isinstance(slot.type, TensorType)}
    return next((dtype for dtype in (DType.BFLOAT16, DType.FLOAT16) if dtype in kinds), None)


def _opened(plan: str | Path, target: str) -> Any:
    """The engine of a plan, or why no GPU here runs it, when its target is only described."""
    from engine.loading import load

    described = target.startswith("cuda:") and not target.partition(":")[2].isdigit()
    try:
        return load(plan, compile="wait", device=device_index(target))
    except (DeviceError, MissingExtraError, TargetMismatchError) as error:
        if not described:
            raise
        return f"loaded on no GPU: {error}"


def verify(plan: str | Path, model: str | Path, target: str = "cpu") -> dict[str, Any]:
    """Load a plan in this process and compare it with its model's meaning on random inputs.

    ``target`` is the name that the plan was built for; it says which GPU to use. Raises KernelError
    when they differ by more than `TOLERANCE` or its row in `TOLERANCES`. Models with random
    operators, or with inputs for which there are no random values, are only loaded; a plan for a
    GPU that is only described is only read, where no such GPU is.
    """
    from engine.debug.against_model import compare_with_model
    from engine.debug.compare import sample_feeds
    from engine.onnx_io import read
    from engine.plan.plan import open_plan

    engine = _opened(plan, target)
    if isinstance(engine, str):
        open_plan(plan)  # which checks every digest and every step
        return {"compared": 0, "note": engine}
    graph = read(model)
    if any(not node.op.deterministic for _, node in graph.walk()):
        return {"compared": 0, "note": "the model has random operators"}
    try:
        feeds = sample_feeds(engine)
    except ValueError as error:
        return {"compared": 0, "note": str(error)}
    found = engine(feeds)
    if engine.program.functions and not any(
        engine.program.slots[i].alias is not None for i in engine.program.outputs
    ):
        engine(feeds)  # captures what a GPU runs as a CUDA graph
        found = engine(feeds)
    narrow = narrowest(engine.program)
    tolerance = TOLERANCE if narrow is None else TOLERANCES[narrow]
    results = compare_with_model(graph, feeds, found, tolerance)
    for item in results:
        if not item.error <= tolerance:
            raise KernelError(
                f"output {item.name!r} of the built engine is off by {item.error:.3g} of its "
                f"spread, more than {tolerance:g} {item.note}"
            )
    return {"compared": len(results), "error": max((r.error for r in results), default=0.0)}
