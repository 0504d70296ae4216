"""Engines: a loaded plan, its weights and kernels, shared read-only by all contexts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import FeedError
from engine.ir.types import Array, Type
from engine.kernels.runner import default_threads
from engine.plan.arena import plan_arena
from engine.plan.structure import ChooseStep, HostStep, Program, Step
from engine.runtime.binding import arena_requests, flat_steps
from engine.runtime.context import Context
from engine.runtime.host import HostCall
from engine.runtime.kernels import CompileMode, KernelSet

__all__ = ["Engine", "Port"]

#: Arenas for the greatest shapes up to this size are reserved at once; larger ones grow on demand.
RESERVED_NBYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of an engine: its name and type, with symbolic sizes."""

    name: str
    type: Type

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


class Engine:
    """A plan ready to run. Safe to use from several threads at once."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Array],
        *,
        metadata: Mapping[str, Any] | None = None,
        compile: CompileMode = "background",
        threads: int | None = None,
    ) -> None:
        self.program = program
        self.weights = weights
        self.metadata = dict(metadata or {})
        self.threads = threads or default_threads()
        self.input_names = [program.slots[index].name for index in program.inputs]
        self.output_names = [program.slots[index].name for index in program.outputs]
        self.kernels = KernelSet(program.kernels, compile)
        self.calls: dict[int, HostCall] = {}
        self._collect_calls(program.steps)
        self.greatest_arena = self._greatest_arena()
        self._idle: list[Context] = []
        self._lock = threading.Lock()

    def _collect_calls(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, ChooseStep):
                for _, chosen in step.cases:
                    self._collect_calls(chosen)
            elif isinstance(step, HostStep):
                layer = self.program.layers[step.layer]
                where = f"layer {layer.name!r} ({layer.kind})"
                self.calls[id(step)] = HostCall(step, self.weights, where)

    def _greatest_arena(self) -> int:
        """Bytes to reserve for the greatest shapes; 0 when that is too much to take at once."""
        sizes = {}
        for symbol in self.program.symbols:
            if not isinstance(symbol.greatest, int):
                return 0
            sizes[symbol.name] = symbol.greatest
        steps = list(flat_steps(self.program.steps, sizes))
        needed = plan_arena(arena_requests(self.program, steps, sizes)).nbytes
        return needed if needed <= RESERVED_NBYTES else 0

    @property
    def inputs(self) -> list[Port]:
        """What the engine takes."""
        return self._ports(self.program.inputs)

    @property
    def outputs(self) -> list[Port]:
        """What the engine gives."""
        return self._ports(self.program.outputs)

    def _ports(self, slots: Sequence[int]) -> list[Port]:
        return [Port(self.program.slots[i].name, self.program.slots[i].type) for i in slots]

    @property
    def profile(self) -> dict[str, tuple[int, tuple[int, ...], int | None]]:
        """Least, usual and greatest value of each symbolic size."""
        return {
            s.name: (s.least, s.usual, s.greatest if isinstance(s.greatest, int) else None)
            for s in self.program.symbols
        }

    def create_context(self, stream: object = None) -> Context:
        """A context: an arena and bound shapes of its own. On a CPU there are no streams."""
        if stream is not None:
            raise FeedError("this engine runs on a CPU, which has no streams; leave stream out")
        return Context(self)

    def wait_until_compiled(self) -> bool:
        """Wait for kernels under compilation; False when NumPy twins serve for good."""
        return self.kernels.wait()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run once, arrays by name in and out; threads that call at once each get a context."""
        with self._lock:
            context = self._idle.pop() if self._idle else None
        context = context or self.create_context()
        try:
            return context.run(inputs)
        finally:
            with self._lock:
                self._idle.append(context)

    def __repr__(self) -> str:
        ports = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"Engine({ports[0]} -> {ports[1]}, {len(self.program.layers)} layers)"
