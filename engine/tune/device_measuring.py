"""Measuring entrants on a GPU: each checked once, then timed in turns in CUDA graphs.

A graph holds many runs over several copies of all buffers, together larger than the level-two
cache, so that weights come from memory as they do in a network. Outputs are poisoned before a check
and followed by guard bytes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.cuda.compare import (
    RESULT_NBYTES,
    THREADS,
    Difference,
    compare_kernel,
    read_difference,
)
from engine.cuda.compile import compile_kernels
from engine.cuda.device import Device, Launch, open_device
from engine.cuda.kernel import Failure
from engine.errors import DeviceError, DeviceMemoryError, EngineError, KernelError
from engine.ir.types import Array, DType, TensorType
from engine.lower.lowering import Compile
from engine.plan.slots import root_of
from engine.plan.structure import Program
from engine.runtime.cuda_binding import CudaBinding
from engine.runtime.cuda_engine import CudaEngine
from engine.runtime.cuda_segments import Lanes
from engine.tune.contest import Contest, Entrant, Outcome, without_drift
from engine.tune.device_blocks import Blocks
from engine.tune.isolation import random_array

__all__ = ["DeviceMeasurer", "open_measurer"]

#: Runs in one graph last at least so long together, so that starting the graph is a small part.
SAMPLE_NS = 150_000.0
MOST_RUNS = 96
MOST_COPIES = 48
MOST_NBYTES = 8 << 30
#: After so many samples an entrant slower than so many times the best so far is dropped.
HOPELESS = {1: 4.0, 3: 1.6, 6: 1.25}
LEAST_SPREAD = 1e-6
Touch = Callable[[int], None]


class _Copy:
    """An engine as a binding sees it, with the weights of one copy of the buffers."""

    def __init__(self, engine: CudaEngine, weights: Mapping[str, int]) -> None:
        self._engine, self._weights = engine, weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def weight_address(self, name: str) -> int:
        """Where a weight of this copy lies."""
        return self._weights[name]


@dataclass(slots=True)
class _Runner:
    """An entrant on its way through a contest."""

    place: int
    engine: CudaEngine
    feeds: Mapping[str, Array]
    bindings: list[CudaBinding] = field(default_factory=list)
    outputs: list[dict[str, int]] = field(default_factory=list)
    graph: int = 0
    runs: int = 0
    samples: list[float] = field(default_factory=list)


def open_measurer(index: int) -> DeviceMeasurer:
    """A measurer on the GPU with that number; errors as for `engine.cuda.device.open_device`."""
    return DeviceMeasurer(open_device(index))


class DeviceMeasurer:
    """Runs contests on one device; used by one thread."""

    def __init__(self, device: Device, compile: Compile | None = None) -> None:
        device.use()
        self.device = device
        self._compile = compile or functools.partial(
            compile_kernels, capability=device.target.capability
        )
        self.stream = device.create_stream()
        self.blocks = Blocks(device, self.stream)
        self._events = [device.create_event(timed=True) for _ in range(2)]
        self._compare: dict[DType, int] = {}
        self._lanes = Lanes(device)

    def measure(self, contest: Contest, touching: Touch = lambda place: None) -> list[Outcome]:
        """One outcome per entrant.

        ``touching`` hears the place of an entrant before it runs. Raises DeviceError when the
        device faults, which leaves it useless to this process.
        """
        self.blocks.reset()
        reasons: dict[int, str] = {}
        crowded: set[int] = set()  # there was no memory left beside the others
        runners: list[_Runner] = []
        try:
            feeds = self._feeds(contest.reference.program, contest.fills)
            self._sources = {name: self.blocks.uploaded(data) for name, data in feeds.items()}
            wanted = self._expected(contest.reference, feeds)
            for place, entrant in enumerate(contest.entrants):
                touching(place)
                try:
                    runner = self._ready(place, entrant, feeds)
                    runners.append(runner)
                    runner.bindings[0].run(self.stream, {}, capture_on=None)
                    reason = self._check(runner, wanted, contest.tolerance)
                    if not reason:
                        self._capture(runner)
                        reason = self._check_graph(runner, wanted, contest.tolerance)
                except DeviceMemoryError as error:
                    reason = str(error)
                    crowded.add(place)
                except DeviceError:
                    raise
                except (EngineError, ValueError) as error:
                    reason = str(error)
                if reason:
                    reasons[place] = reason
            racing = [r for r in runners if r.place not in reasons]
            self._race(racing, contest.samples, touching)
            steady = without_drift([runner.samples for runner in racing])
            samples = {runner.place: found for runner, found in zip(racing, steady)}
            return [
                Outcome(samples.get(place, ()), reasons.get(place, ""), place not in crowded)
                for place in range(len(contest.entrants))
            ]
        finally:
            self._close(runners)

    def _close(self, runners: Sequence[_Runner]) -> None:
        for runner in runners:
            if runner.graph:
                self.device.destroy_graph(runner.graph)
            for binding in runner.bindings:
                binding.close()
            runner.engine.close()

    # Getting ready ----------------------------------------------------------------------------

    def _feeds(self, program: Program, fills: Mapping[str, int]) -> dict[str, Array]:
        """Data for every input, by name: random, or one number."""
        found = {}
        for seed, index in enumerate(program.inputs):
            slot = program.slots[index]
            assert isinstance(slot.type, TensorType)
            found[slot.name] = random_array(slot.type, seed)
            if slot.name in fills:
                found[slot.name].fill(fills[slot.name])
        return found

    def _engine(self, entrant: Entrant) -> CudaEngine:
        return CudaEngine(entrant.program, entrant.weights, entrant.images, device=self.device)

    def _bound(
        self, engine: CudaEngine, feeds: Mapping[str, Array], weights: Mapping[str, int] | None
    ) -> tuple[CudaBinding, dict[str, int]]:
        """The program over fresh buffers; and where its outputs are."""
        program = engine.program
        external: dict[int, int] = {}
        outputs: dict[str, int] = {}
        for index in program.inputs:
            name = program.slots[index].name
            external[index] = self.blocks.guarded(feeds[name].nbytes, self._sources[name])
        for index in program.outputs:
            slot, root = program.slots[index], root_of(program, index)
            if root != index:  # it updates an input in place
                outputs[slot.name] = external[root]
                continue
            assert isinstance(slot.type, TensorType)
            nbytes = math.prod(map(int, slot.type.dims)) * slot.type.dtype.nbytes  # type: ignore[arg-type]
            external[index] = outputs[slot.name] = self.blocks.guarded(nbytes)
        owner: Any = engine if weights is None else _Copy(engine, weights)
        binding = CudaBinding(owner, {}, external, self._lanes)
        layout = binding.layout
        base = self.blocks.guarded(layout.nbytes)
        zeros = self.blocks.cleared(layout.zeros_nbytes)
        binding.prepare(base, zeros, 0, programmatic=True)
        return binding, outputs

    def _expected(self, reference: Entrant, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """The outputs that are right: (address, count, dtype) by name."""
        engine = self._engine(reference)
        binding, outputs = self._bound(engine, feeds, None)
        binding.run(self.stream, {}, capture_on=None)
        self.device.synchronize(self.stream)
        program = engine.program
        found = {}
        for index in program.outputs:
            slot = program.slots[index]
            assert isinstance(slot.type, TensorType)
            count = math.prod(map(int, slot.type.dims))  # type: ignore[arg-type]
            found[slot.name] = (outputs[slot.name], count, slot.type.dtype)
        binding.close()
        engine.close()
        return found

    def _ready(self, place: int, entrant: Entrant, feeds: Mapping[str, Array]) -> _Runner:
        runner = _Runner(place, self._engine(entrant), feeds)
        binding, outputs = self._bound(runner.engine, feeds, None)
        runner.bindings.append(binding)
        runner.outputs.append(outputs)
        weights = {name: entrant.weights[name] for name in runner.engine.device_weights}
        nbytes = sum(array.nbytes for array in (*weights.values(), *feeds.values()))
        nbytes += binding.layout.nbytes + sum(self.blocks.sizes[a] for a in outputs.values())
        wanted = math.ceil(2 * self.device.target.l2_nbytes / max(nbytes, 1))
        copies = max(1, min(wanted, MOST_COPIES, MOST_NBYTES // max(nbytes, 1)))
        for _ in range(copies - 1):
            own = {
                name: self.blocks.duplicated(runner.engine.weight_address(name), array.nbytes)
                for name, array in weights.items()
            }
            binding, outputs = self._bound(runner.engine, feeds, own)
            runner.bindings.append(binding)
            runner.outputs.append(outputs)
        return runner

    def _check_graph(self, runner: _Runner, wanted: Mapping[str, Any], tolerance: float) -> str:
        """Whether a graph gives the same: a library's call may copy from memory that is gone."""
        states = self._states(runner)
        for address in runner.outputs[0].values():
            if address not in states:
                self.blocks.poison(address)
        graph = runner.graph
        if states:  # each run goes on where the last one ended, so only one may run
            graph = self._captured([runner.bindings[0]])
            for address, array in states.items():
                data = np.ascontiguousarray(array)
                self.device.upload(address, data.ctypes.data, data.nbytes, self.stream)
        self.device.launch_graph(graph, self.stream)
        reason = self._check(runner, wanted, tolerance)
        if states:
            self.device.destroy_graph(graph)
        return f"captured in a graph, {reason}" if reason else ""

    def _states(self, runner: _Runner) -> dict[int, Array]:
        """What the inputs that a program updates in place held at first, by address."""
        program, binding = runner.engine.program, runner.bindings[0]
        roots = [root_of(program, i) for i in program.outputs if root_of(program, i) != i]
        return {binding.address(root): runner.feeds[program.slots[root].name] for root in roots}

    def _check(self, runner: _Runner, wanted: Mapping[str, Any], tolerance: float) -> str:
        """Why a result that was written over poison is wrong, or nothing."""
        self.device.synchronize(self.stream)
        for name, (address, count, dtype) in wanted.items():
            found = runner.outputs[0][name]
            if not self.blocks.guard_holds(found):
                return f"it writes behind the end of output {name!r}"
            off = self._difference(found, address, count, dtype)
            limit = tolerance * max(off.spread, LEAST_SPREAD)
            if off.wrong or not off.greatest <= limit:
                return (
                    f"output {name!r} is off by {off.greatest:.3g} with {off.wrong} elements of "
                    f"{count} not to be compared (spread {off.spread:.3g})"
                )
        return ""

    def _difference(self, found: int, wanted: int, count: int, dtype: DType) -> Difference:
        result = self.blocks.cleared(RESULT_NBYTES)
        launch = Launch(
            function=self._compare_function(dtype),
            grid=(max(1, min(1024, -(-count // (4 * THREADS)))), 1, 1),
            threads=THREADS,
            shared_nbytes=0,
            cluster=1,
            early=False,
            arguments=(
                ("pointer", found),
                ("pointer", wanted),
                ("i64", count),
                ("pointer", result),
            ),
        )
        self.device.prepare(launch)(self.stream)
        host = np.empty(RESULT_NBYTES, np.uint8)
        self.device.download(host.ctypes.data, result, RESULT_NBYTES, self.stream)
        self.device.synchronize(self.stream)
        return read_difference(host.tobytes(), count)

    def _compare_function(self, dtype: DType) -> int:
        found = self._compare.get(dtype)
        if found is None:
            (compiled,) = self._compile([compare_kernel(dtype)])
            if isinstance(compiled, Failure):
                raise KernelError(f"the comparing kernel does not compile: {compiled.reason}")
            module = self.device.load_module(compiled.image, "compare")
            found = self.device.function(module, compiled.entry, 0, 1)
            self._compare[dtype] = found
        return found

    # Timing -----------------------------------------------------------------------------------

    def _capture(self, runner: _Runner) -> None:
        """A graph of runs over all copies, long enough to be timed."""
        runner.runs = max(len(runner.bindings), 4)
        runner.graph = self._graph(runner)
        self._sample(runner)
        spent = self._sample(runner)
        wanted = min(MOST_RUNS, math.ceil(SAMPLE_NS / max(spent, 1.0)))
        if wanted > runner.runs:
            self.device.destroy_graph(runner.graph)
            runner.graph, runner.runs = 0, wanted
            runner.graph = self._graph(runner)
            self._sample(runner)

    def _graph(self, runner: _Runner) -> int:
        count = len(runner.bindings)
        return self._captured([runner.bindings[turn % count] for turn in range(runner.runs)])

    def _captured(self, bindings: Sequence[CudaBinding]) -> int:
        self.device.begin_capture(self.stream)
        try:
            for binding in bindings:
                binding.run(self.stream, {}, capture_on=None)
            return self.device.end_capture(self.stream)
        except BaseException:
            self.device.abandon_capture(self.stream)
            raise

    def _sample(self, runner: _Runner) -> float:
        """Nanoseconds of one run, from one launch of the graph."""
        first, last = self._events
        self.device.record(first, self.stream)
        self.device.launch_graph(runner.graph, self.stream)
        self.device.record(last, self.stream)
        self.device.synchronize_event(last)
        return self.device.elapsed_ns(first, last) / runner.runs

    def _race(self, racing: Sequence[_Runner], samples: int, touching: Touch) -> None:
        """Interleaved turns; entrants without hope leave early."""
        alive = list(racing)
        for turn in range(1, samples + 1):
            for runner in alive:
                if turn == 1:
                    touching(runner.place)
                runner.samples.append(self._sample(runner))
            if turn in HOPELESS and alive:
                best = min(min(runner.samples) for runner in alive)
                alive = [r for r in alive if min(r.samples) <= HOPELESS[turn] * best]
