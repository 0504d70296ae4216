"""Tuning for a GPU: candidates compiled on all processors, measured in a process of its own."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from engine.cuda.compile import compile_kernels, compiler_versions, stop_compilers
from engine.errors import EngineError
from engine.ir.graph import Graph, Value
from engine.ir.types import Array, DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.lower.lowering import lower
from engine.tactics import Candidate, candidates
from engine.target import CudaTarget
from engine.tune.choosing import identity
from engine.tune.contest import Contest, Entrant, Outcome
from engine.tune.isolation import isolate
from engine.tune.measuring_process import DEFAULT_FACTORY, MeasuringProcess
from engine.tune.records import TimingRecord
from engine.tune.tuning import Task
from engine.tune.weights import made_weight
from engine.tune.whole_programs import measure_programs

if TYPE_CHECKING:
    from engine.building import BuildOptions

__all__ = ["DeviceTuner", "device_toolchain"]

#: Operands and results of a layer that share their memory.
Shared = Sequence[tuple[int, int]]

SAMPLES = 20
#: Layers whose candidates are compiled at the same time: the slowest kernel of one must not keep
#: processors from the next.
AHEAD = 4
#: Largest error of a candidate in units of the spread of a result, by its element type.
TOLERANCES = {DType.FLOAT16: 2e-2, DType.BFLOAT16: 1e-1}
TOLERANCE = 2e-3
_GENERATORS = (
    *("cuda/*.py", "templates/*.py", "kernels/region_lowering.py", "tactics/matmul_view.py"),
    *(f"tactics/{source}*.py" for source in ("triton", "nvrtc", "cublaslt", "cudnn")),
)


@functools.cache
def device_toolchain() -> str:
    """What the speed of a candidate depends on beside the device: compilers and generators."""
    digest = hashlib.sha256(json.dumps(compiler_versions(), sort_keys=True).encode())
    root = Path(__file__).parent.parent
    for pattern in _GENERATORS:
        for path in sorted(root.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class DeviceTuner:
    """Compiles and measures the candidates of tasks on one GPU."""

    def __init__(self, target: CudaTarget, index: int = 0, factory: str = DEFAULT_FACTORY) -> None:
        self.target = target
        self.process = MeasuringProcess(index, factory=factory)
        self._compile = functools.partial(compile_kernels, capability=target.capability)
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="enginefarm-tuner")
        self._jobs: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.process.close()
        stop_compilers()

    def compile(
        self, tasks: Sequence[Task], report: Callable[[int, int], None] | None = None
    ) -> None:
        """Start compiling the kernels of all candidates, in order of tasks; measuring follows.

        ``report`` hears, from other threads, how many tasks are compiled and how many there are.
        What a compiler refuses is left to the measurement of its candidate, which keeps the reason.
        """
        done = itertools.count(1)

        def compile_and_tell(task: Task) -> None:
            self._compile_task(task)
            if report is not None:
                with self._lock:
                    report(next(done), len(tasks))

        for task in tasks:
            self._jobs[task.signature] = self._pool.submit(compile_and_tell, task)

    def _compile_task(self, task: Task) -> None:
        kernels = {}
        graph, offered = self._isolated(task)
        for candidate in [*offered, *self._plain(graph)]:
            builder = ProgramBuilder(graph)
            try:
                candidate.emit(builder, graph.nodes[0], builder.layer(graph.nodes[0], "", {}))
            except (EngineError, ValueError, KeyError):
                continue
            kernels.update({kernel.digest: kernel for kernel in builder.device_kernels})
        self._compile(list(kernels.values()))

    def _isolated(self, task: Task) -> tuple[Graph, list[Candidate]]:
        """The layer on its own, and its candidates offered anew for the sizes of the point."""
        graph = isolate(task.node, task.point)
        sources = sorted({candidate.tactic.split(".")[0] for candidate in task.offered})
        again, _ = candidates(graph.nodes[0], sources, {}, self.target)
        known = {identity(candidate): candidate for candidate in again}
        return graph, [known.get(identity(item), item) for item in task.offered]

    def _plain(self, graph: Graph) -> list[Candidate]:
        """The candidate whose results are taken as right, if a device can compute them."""
        offered, _ = candidates(graph.nodes[0], ("nvrtc",), {}, self.target)
        return [item for item in offered if item.tactic == "nvrtc.plain"][:1]

    def measure(self, task: Task) -> list[TimingRecord]:
        """Timing records of all candidates of one layer."""
        job = self._jobs.pop(task.signature, None)
        if job is not None:
            job.result()
        graph, offered = self._isolated(task)
        outcomes: dict[int, Outcome] = {}
        entrants: dict[int, Entrant] = {}
        packed: dict[Any, Array] = {}
        for place, candidate in enumerate(offered):
            try:
                entrants[place] = self._entrant(graph, candidate, packed, task.shared)
            except (EngineError, ValueError) as error:
                outcomes[place] = Outcome(reason=str(error))
            except KeyError as error:
                outcomes[place] = Outcome(reason=f"the size {error} has no value at this point")
        if entrants:
            reference = self._reference(graph, packed, task.shared)
            contest = Contest(reference, tuple(entrants.values()), SAMPLES, _tolerance(graph))
            outcomes.update(zip(entrants, self.process.measure(contest), strict=True))
        lasting = [i for i in range(len(offered)) if outcomes[i].lasting]
        return [self._record(task, offered[i], outcomes[i]) for i in lasting]

    def measure_programs(
        self, graph: Graph, options: BuildOptions, records: Sequence[TimingRecord]
    ) -> list[TimingRecord]:
        """Timing records of whole programs, when those of all layers are there."""
        return measure_programs(
            graph, options, list(records), self._compile, self.process.measure, device_toolchain()
        )

    def _reference(self, graph: Graph, packed: dict[Any, Array], shared: Shared) -> Entrant:
        plain = self._plain(graph)
        return self._entrant(graph, plain[0] if plain else None, packed, shared)

    def _entrant(
        self,
        graph: Graph,
        candidate: Candidate | None,
        packed: dict[Any, Array],
        shared: Shared = (),
    ) -> Entrant:
        """The layer by one candidate, or by its meaning on the host."""
        (node,) = graph.nodes
        choices = {} if candidate is None else {node.name: (candidate, 0)}
        updates = {node.outputs[to].name: _named(node.inputs[of]) for of, to in shared}
        lowered = lower(graph, (), choices, self._compile, updates=updates)
        weights = {name: made_weight(item, packed) for name, item in lowered.packed.items()}
        images = {name: image.tobytes() for name, image in lowered.images.items()}
        return Entrant(lowered.program, weights, images)

    def _record(self, task: Task, candidate: Candidate, outcome: Outcome) -> TimingRecord:
        return TimingRecord(
            signature=task.signature,
            tactic=candidate.tactic,
            choice=dict(candidate.choice),
            point=dict(task.own_point),
            target=self.target.to_json(),
            toolchain=device_toolchain(),
            time_ns=outcome.time_ns if outcome.samples else 0.0,
            spread=outcome.spread,
            samples=len(outcome.samples),
            status="failed" if outcome.reason else "ok",
            reason=outcome.reason,
            layer=task.node.name,
        )


def _named(value: Value | None) -> str:
    assert value is not None
    return value.name


def _tolerance(graph: Graph) -> float:
    kinds = [value.type for value in graph.outputs]
    dtypes = [kind.dtype for kind in kinds if isinstance(kind, TensorType)]
    return max((TOLERANCES.get(dtype, TOLERANCE) for dtype in dtypes), default=TOLERANCE)
