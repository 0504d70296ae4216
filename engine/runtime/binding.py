"""A program bound to one set of sizes: memory planned, pointers known, steps ready to run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import KernelError, PlanCorruptError
from engine.ir.sizes import evaluate
from engine.ir.types import Array, TensorType
from engine.kernels.kernel import Kernel
from engine.kernels.runner import Handle, Runner
from engine.kernels.runner import Step as RunnerStep
from engine.plan.arena import Arena, plan_arena
from engine.plan.slots import is_fixed
from engine.plan.structure import FlatStep, HostStep, KernelStep, Program
from engine.runtime import blas
from engine.runtime.feeds import owned
from engine.runtime.host import HostCall
from engine.runtime.steps import arena_requests, flat_steps, locate, slot_nbytes

__all__ = ["BoundProgram", "Buffers", "arena_requests", "flat_steps"]

_ALIGNMENT = 256


@dataclass(slots=True)
class Buffers:
    """Memory of one run: per slot its bytes or its Python value."""

    inputs: dict[int, Array] = field(default_factory=dict)
    outputs: dict[int, Array] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)


def _runs_here(step: FlatStep) -> KernelStep | HostStep:
    """The step itself; PlanCorruptError for one that only a GPU runs."""
    if not isinstance(step, KernelStep | HostStep):
        raise PlanCorruptError(
            f"layer {step.layer} runs on a GPU, the plan says it is for this processor; "
            "build the model again"
        )
    return step


@dataclass(slots=True)
class _HostSegment:
    step: HostStep
    call: HostCall


@dataclass(slots=True)
class _KernelSegment:
    steps: list[KernelStep]
    sizes: list[tuple[int, ...]]
    handle: Handle | None
    patches: list[tuple[int, int, int, int]]  # step, operand, root slot, byte offset


class BoundProgram:
    """Runs one program at one set of sizes; used by one thread at a time."""

    def __init__(
        self,
        program: Program,
        sizes: Mapping[str, int],
        weights: Mapping[str, Array],
        calls: Mapping[int, HostCall],
    ) -> None:
        self.program, self.sizes, self.weights = program, dict(sizes), weights
        self.steps = [_runs_here(step) for step in flat_steps(program.steps, sizes)]
        self.arena: Arena = plan_arena(arena_requests(program, self.steps, sizes))
        self._memory: Array = np.empty(0, np.uint8)
        self._calls = calls
        self._segments: list[_HostSegment | _KernelSegment] = []
        self.compiled = False
        self._static: dict[int, Array] = {}

    def prepare(
        self, memory: Array, runner: Runner | None, addresses: Sequence[int] | None
    ) -> None:
        """Fix pointers into ``memory`` (uint8, at least the arena's bytes, aligned to 256)."""
        self._memory = memory
        self.compiled = addresses is not None
        self._static = {}
        self._segments = []
        run: list[KernelStep] = []
        for step in self.steps:
            if isinstance(step, KernelStep):
                run.append(step)
                continue
            if run:
                self._segments.append(self._kernel_segment(run, runner, addresses))
                run = []
            self._segments.append(_HostSegment(step, self._calls[id(step)].at(self.sizes)))
        if run:
            self._segments.append(self._kernel_segment(run, runner, addresses))

    def _kernel_segment(
        self, steps: list[KernelStep], runner: Runner | None, addresses: Sequence[int] | None
    ) -> _KernelSegment:
        prepared, patches, all_sizes = [], [], []
        for position, step in enumerate(steps):
            kernel = self.program.kernels[step.kernel]
            sizes = tuple(evaluate(size, self.sizes) for size in step.sizes)
            self._check_extents(kernel, step, sizes)
            all_sizes.append(sizes)
            if addresses is None or runner is None:
                continue
            pointers = []
            for operand, (slot, offset) in enumerate(step.operands):
                root, nbytes = self._locate(slot, evaluate(offset, self.sizes))
                base = self._static_bytes(root)
                if base is None:
                    patches.append((position, operand, root, nbytes))
                    pointers.append(0)
                else:
                    pointers.append(base.ctypes.data + nbytes)
            prepared.append(
                RunnerStep(
                    addresses[step.kernel],
                    pointers,
                    sizes,
                    kernel.items(sizes),
                    kernel.scratch_nbytes(sizes),
                )
            )
        handle = runner.prepare(prepared) if addresses is not None and runner is not None else None
        return _KernelSegment(list(steps), all_sizes, handle, patches)

    def _locate(self, slot: int, elements: int) -> tuple[int, int]:
        """The root of a slot, and where ``elements`` into the slot lies in it, in bytes."""
        return locate(self.program, slot, elements, self.sizes)

    def _check_extents(self, kernel: Kernel, step: KernelStep, sizes: tuple[int, ...]) -> None:
        """No kernel may touch memory outside its operands, whatever a plan file says."""
        try:
            extents = kernel.extents(sizes)
        except ValueError as error:
            raise PlanCorruptError(f"layer {step.layer}: {error}") from None
        for (slot, offset), extent in zip(step.operands, extents):
            root, nbytes = self._locate(slot, evaluate(offset, self.sizes))
            kind = self.program.slots[slot].type
            assert isinstance(kind, TensorType)
            available = slot_nbytes(self.program, root, self.sizes)
            if nbytes < 0 or (extent and nbytes + extent * kind.dtype.nbytes > available):
                raise PlanCorruptError(
                    f"layer {step.layer}: kernel {kernel.kind} reaches {extent} elements from byte "
                    f"{nbytes} of a buffer of {available} bytes"
                )

    def _static_bytes(self, root: int) -> Array | None:
        """The bytes of a slot whose memory outlives a run; None for inputs and outputs."""
        found = self._static.get(root)
        if found is None:
            slot = self.program.slots[root]
            if slot.place == "weight":
                found = self.weights[slot.name].reshape(-1).view(np.uint8)
            elif slot.place == "arena":
                start = self.arena.offsets[root]
                found = self._memory[start : start + slot_nbytes(self.program, root, self.sizes)]
            else:
                return None
            self._static[root] = found
        return found

    def _bytes(self, root: int, buffers: Buffers) -> Array:
        found = self._static_bytes(root)
        if found is not None:
            return found
        owner = buffers.inputs if root in buffers.inputs else buffers.outputs
        return owner[root].reshape(-1).view(np.uint8)

    def view(self, slot: int, buffers: Buffers) -> Any:
        """The array (or Python value) in a slot."""
        place, kind = self.program.slots[slot].place, self.program.slots[slot].type
        if place == "weight" and self.program.slots[slot].alias is None:
            return self.weights[self.program.slots[slot].name]
        if not is_fixed(self.program.slots[slot]):
            return buffers.values.get(slot)
        assert isinstance(kind, TensorType)
        root, nbytes = self._locate(slot, 0)
        if root in buffers.values:
            return buffers.values[root]
        shape = [evaluate(dim, self.sizes) for dim in kind.dims]
        data = self._bytes(root, buffers)
        count = slot_nbytes(self.program, slot, self.sizes)
        return data[nbytes : nbytes + count].view(kind.dtype.numpy).reshape(shape)

    def run(self, buffers: Buffers, runner: Runner | None, times: dict[int, int] | None) -> None:
        """Run all segments; adds nanoseconds per layer to ``times`` when given."""
        for segment in self._segments:
            if isinstance(segment, _HostSegment):
                started = time.perf_counter_ns()
                self._run_host(segment, buffers)
                if times is not None:
                    spent = time.perf_counter_ns() - started
                    times[segment.step.layer] = times.get(segment.step.layer, 0) + spent
            elif segment.handle is not None and runner is not None:
                self._run_kernels(segment, buffers, runner, times)
            else:
                self._run_twins(segment, buffers, times)

    def _run_kernels(
        self,
        segment: _KernelSegment,
        buffers: Buffers,
        runner: Runner,
        times: dict[int, int] | None,
    ) -> None:
        handle = segment.handle
        assert handle is not None
        bases: dict[int, int] = {}
        for position, operand, root, nbytes in segment.patches:
            if root not in bases:
                bases[root] = self._bytes(root, buffers).ctypes.data
            handle.pointers[position][operand] = bases[root] + nbytes
        if times is None:
            runner.run(handle)
            return
        spent = np.zeros(handle.count, np.int64)
        runner.run(handle, spent)
        for step, nanoseconds in zip(segment.steps, spent):
            times[step.layer] = times.get(step.layer, 0) + int(nanoseconds)

    def _run_twins(
        self, segment: _KernelSegment, buffers: Buffers, times: dict[int, int] | None
    ) -> None:
        for step, sizes in zip(segment.steps, segment.sizes):
            started = time.perf_counter_ns()
            kernel = self.program.kernels[step.kernel]
            operands = []
            for (slot, offset), name in zip(step.operands, kernel.operand_dtypes):
                root, nbytes = self._locate(slot, evaluate(offset, self.sizes))
                dtype = np.dtype(name)
                data = self._bytes(root, buffers)[nbytes:]
                operands.append(data[: data.size // dtype.itemsize * dtype.itemsize].view(dtype))
            kernel.twin(operands, sizes)
            if times is not None:
                spent = time.perf_counter_ns() - started
                times[step.layer] = times.get(step.layer, 0) + spent

    def _run_host(self, segment: _HostSegment, buffers: Buffers) -> None:
        given = [None if slot is None else self.view(slot, buffers) for slot in segment.step.inputs]
        if self.compiled and self.program.kernels:
            with blas.single_threaded():
                results = segment.call(given)
        else:
            results = segment.call(given)
        for slot, result in zip(segment.step.outputs, results):
            self._store(slot, result, buffers, segment.call.where)

    def _store(self, slot: int, result: Any, buffers: Buffers, where: str) -> None:
        if not is_fixed(self.program.slots[slot]):
            kind = self.program.slots[slot].type
            tensor = isinstance(kind, TensorType) and result is not None
            # What lies in the arena is overwritten by later steps, which do not know of this view.
            value = np.asarray(result) if tensor else result
            buffers.values[slot] = owned(value, [self._memory])
            return
        target = self.view(slot, buffers)
        result = np.asarray(result)
        if result.shape != target.shape or result.dtype != target.dtype:
            raise KernelError(
                f"{where} made {result.dtype}{list(result.shape)}, expected "
                f"{target.dtype}{list(target.shape)}"
            )
        np.copyto(target, result)
