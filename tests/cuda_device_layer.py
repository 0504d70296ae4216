"""One layer on a device: a candidate's launches, checked and timed, without a plan around them.

    outputs, microseconds = run_on_device(graph, node, candidate, {"M": 8}, device)

Candidates of every compiled source; libraries and host steps are for the runtime's own tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.cuda.compile import compile_kernels
from engine.cuda.device import Argument, Device, Launch
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.cuda.tensor_map import encode_box
from engine.ir.graph import Graph, Node
from engine.ir.sizes import Dim, evaluate
from engine.lower.builder import ProgramBuilder
from engine.plan.device import ClearStep, LaunchStep, Null, Pointer, Scalar, TensorMap
from engine.tactics.tactic import Candidate
from tests.cuda_layer import emitted, filled

__all__ = ["compiled_for", "run_on_device"]

GUARD = 1024
POISON = 0xFF
Compile = Callable[[Sequence[DeviceKernel]], Sequence[Compiled]]


def compiled_for(device: Device) -> Compile:
    """Compiles for a real device; AssertionError for a kernel that does not compile."""

    def build(kernels: Sequence[DeviceKernel]) -> list[Compiled]:
        found = []
        for kernel, result in zip(kernels, compile_kernels(kernels, device.target.capability)):
            assert isinstance(result, Compiled), f"{kernel.entry}: {result}"
            found.append(result)
        return found

    return build


class _Memory:
    """The slots of a layer on a device, each between guard bytes."""

    def __init__(self, device: Device, arrays: Sequence[np.ndarray]) -> None:
        self.device, self.blocks = device, []
        for array in arrays:
            image = np.full(array.nbytes + 2 * GUARD, POISON, np.uint8)
            image[GUARD : GUARD + array.nbytes] = array.view(np.uint8)
            address = device.allocate(image.nbytes)
            device.upload(address, image.ctypes.data, image.nbytes, 0)
            device.synchronize(0)
            self.blocks.append((address, image, array))

    def address(self, slot: int, offset: int = 0) -> int:
        start, _, array = self.blocks[slot]
        return start + GUARD + offset * array.itemsize

    def nbytes(self, slot: int) -> int:
        return self.blocks[slot][2].nbytes

    def fetch(self) -> None:
        """Bring everything back into the arrays; guards must be as they were."""
        for address, image, array in self.blocks:
            self.device.download(image.ctypes.data, address, image.nbytes, 0)
            self.device.synchronize_all()
            assert (image[:GUARD] == POISON).all(), "a write before a tensor"
            assert (image[GUARD + array.nbytes :] == POISON).all(), "a write past a tensor"
            array.view(np.uint8)[:] = image[GUARD : GUARD + array.nbytes]

    def release(self) -> None:
        for address, _, _ in self.blocks:
            self.device.release(address)


def run_on_device(
    graph: Graph,
    node: Node,
    candidate: Candidate,
    point: Mapping[str, int],
    device: Device,
    *,
    build: Compile | None = None,
    times: int = 0,
) -> tuple[list[np.ndarray], float]:
    """The outputs, and the time of one run in microseconds: mean of ``times`` in one graph, or 0.

    In the graph every kernel that waits may begin early. Data are those of the layer's inputs.
    """
    builder = emitted(graph, node, candidate)
    device.use()
    results = (build or compiled_for(device))(builder.device_kernels)
    memory = _Memory(device, filled(builder, node, point))
    modules = [device.load_module(item.image, item.entry) for item in results]
    try:
        actions, again = (
            _actions(device, builder, memory, results, modules, point, early=early)
            for early in (False, isinstance(builder.steps[-1], LaunchStep))
        )
        for action in actions:
            action(0)
        device.synchronize_all()
        memory.fetch()
        arrays = [array for _, _, array in memory.blocks]
        for slot, array in zip(builder.slots, arrays):
            assert slot.place != "zeros" or not array.any(), "counters are not left at zero"
        outputs = [
            arrays[builder.slot(value)].reshape([evaluate(d, point) for d in value.tensor.dims])
            for value in node.outputs
        ]
        return outputs, _microseconds(device, actions, again, times) if times else 0.0
    finally:
        for module in modules:
            device.unload_module(module)
        memory.release()


def _argument(
    device: Device, memory: _Memory, compiled: Compiled, item: object, point: Mapping[str, int]
) -> Argument:
    def number(dim: Dim) -> int:
        return evaluate(dim, point)

    if isinstance(item, Pointer):
        return ("pointer", memory.address(item.slot, number(item.offset)))
    if isinstance(item, Scalar):
        if item.kind == "f32":
            value = item.value
            return ("f32", value if isinstance(value, float) else float(number(value)))
        assert not isinstance(item.value, float)
        return (item.kind, number(item.value))
    if isinstance(item, TensorMap):
        box = encode_box(
            compiled.maps[item.form],
            memory.address(item.slot, number(item.offset)),
            [number(dim) for dim in item.sizes],
            [number(dim) for dim in item.strides],
            item.steps,
        )
        return ("map", device.encode(box))
    assert isinstance(item, Null)
    return ("pointer", 0)


def _actions(
    device: Device,
    builder: ProgramBuilder,
    memory: _Memory,
    results: Sequence[Compiled],
    modules: Sequence[int],
    point: Mapping[str, int],
    *,
    early: bool,
) -> list[Callable[[int], None]]:
    """What enqueues each step; with ``early``, the first one follows a launch as well."""

    def cleared(slot: int) -> Callable[[int], None]:
        return lambda stream: device.clear(memory.address(slot), memory.nbytes(slot), stream)

    actions: list[Callable[[int], None]] = []
    for step in builder.steps:
        if isinstance(step, ClearStep):
            actions.append(cleared(step.slot))
            early = False
            continue
        assert isinstance(step, LaunchStep), f"a {type(step).__name__} is for the runtime"
        compiled = results[step.function]
        x, y, z = (evaluate(dim, point) for dim in step.grid)
        if 0 in (x, y, z):
            continue
        shared, cluster = compiled.shared_nbytes, compiled.cluster
        launch = Launch(
            device.function(modules[step.function], compiled.entry, shared, cluster),
            (x, y, z),
            compiled.threads,
            shared,
            cluster,
            early=compiled.waits and early,
            arguments=tuple(
                _argument(device, memory, compiled, item, point) for item in step.parameters
            ),
        )
        actions.append(device.prepare(launch))
        early = True
    return actions


def _microseconds(
    device: Device,
    actions: Sequence[Callable[[int], None]],
    again: Sequence[Callable[[int], None]],
    times: int,
) -> float:
    stream = device.create_stream()
    start, end = device.create_event(timed=True), device.create_event(timed=True)
    device.begin_capture(stream)
    for turn in range(times):
        for action in again if turn else actions:
            action(stream)
    graph = device.end_capture(stream)
    try:
        best = float("inf")
        for _ in range(5):
            device.record(start, stream)
            device.launch_graph(graph, stream)
            device.record(end, stream)
            device.synchronize_event(end)
            best = min(best, device.elapsed_ns(start, end) / 1e3 / times)
        return best
    finally:
        device.destroy_graph(graph)
        device.destroy_event(start)
        device.destroy_event(end)
        device.destroy_stream(stream)
