"""Engines: a loaded plan, its weights and kernels, shared read-only by all contexts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from engine.errors import FeedError
from engine.ir.types import Array
from engine.kernels.runner import default_threads
from engine.plan.arena import plan_arena
from engine.plan.structure import Program
from engine.runtime.context import Context
from engine.runtime.interface import Port, ProgramInterface, host_calls
from engine.runtime.kernels import CompileMode, KernelSet
from engine.runtime.steps import arena_requests, flat_steps, greatest_sizes

__all__ = ["Engine", "Port"]

#: Arenas for the greatest shapes up to this size are reserved at once; larger ones grow on demand.
RESERVED_NBYTES = 1 << 28


class Engine(ProgramInterface):
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
        super().__init__(program)
        self.weights = weights
        self.metadata = dict(metadata or {})
        self.threads = threads or default_threads()
        self.kernels = KernelSet(program.kernels, compile)
        self.calls = host_calls(program, weights)
        self.greatest_arena = self._greatest_arena()
        self._idle: list[Context] = []
        self._lock = threading.Lock()

    def _greatest_arena(self) -> int:
        """Bytes to reserve for the greatest shapes; 0 when that is too much to take at once."""
        sizes = greatest_sizes(self.program)
        if sizes is None:
            return 0
        steps = list(flat_steps(self.program.steps, sizes))
        needed = plan_arena(arena_requests(self.program, steps, sizes)).nbytes
        return needed if needed <= RESERVED_NBYTES else 0

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
