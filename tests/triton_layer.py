"""One layer of Triton kernels: a candidate's launches in Triton's interpreter, or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.cuda.compile import compile_kernels
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.ir.graph import Graph, Node
from engine.ir.sizes import evaluate
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import Placement
from engine.plan.device import LaunchStep, Null, Pointer, Scalar, TensorMap
from engine.plan.structure import Slot, Symbol
from engine.tactics.tactic import Candidate
from tests.cuda_layer import _data, _memory, _view
from tests.triton_shim import run_step

__all__ = ["emit", "interpret_candidate", "run_on_device"]


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


def _filled(builder: ProgramBuilder, node: Node, point: Mapping[str, int]) -> list[Any]:
    """Memory of every slot, with the inputs in it; the rest is poison."""
    arrays = [_memory(builder, slot, point) for slot in builder.slots]
    for value in node.inputs:
        if value is not None and value.constant is None:
            _view(builder, arrays, value, point)[...] = _data(value)
    return arrays


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
    arrays = _filled(builder, node, point)
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


def run_on_device(
    graph: Graph, node: Node, candidate: Candidate, point: Mapping[str, int] | None = None
) -> Any:
    """The output of a layer on the first GPU, from a second run of its launches."""
    from engine.cuda.hardware import CudaDevice

    point = point or {}
    device = CudaDevice(0)
    device.use()
    builder = emit(graph, node, candidate)
    arrays = _filled(builder, node, point)
    addresses = [device.allocate(array.nbytes) for array in arrays]
    stream = device.create_stream()
    modules: list[int] = []
    try:
        for address, array in zip(addresses, arrays):
            device.upload(address, array.ctypes.data, array.nbytes, stream)
        found = compile_kernels(builder.device_kernels, device.target.capability, workers=1)
        launches = []
        for step in builder.steps:
            assert isinstance(step, LaunchStep)
            compiled = found[step.function]
            assert isinstance(compiled, Compiled), compiled
            modules.append(device.load_module(compiled.image, compiled.entry))
            launches.append(
                _prepared(device, modules[-1], compiled, step, addresses, builder, point)
            )
        for _ in range(2):  # counters must be ready for the next run
            for enqueue in launches:
                enqueue(stream)
        for address, array in zip(addresses, arrays):
            device.download(array.ctypes.data, address, array.nbytes, stream)
        device.synchronize(stream)
    finally:
        for module in modules:
            device.unload_module(module)
        for address in addresses:
            device.release(address)
        device.destroy_stream(stream)
    return np.array(_view(builder, arrays, node.outputs[0], point))


def _prepared(
    device: Any,
    module: int,
    compiled: Compiled,
    step: LaunchStep,
    addresses: Sequence[int],
    builder: ProgramBuilder,
    point: Mapping[str, int],
) -> Any:
    from engine.cuda.device import Launch
    from engine.cuda.tensor_map import encode_box

    arguments: list[Any] = []
    for item in step.parameters:
        if isinstance(item, Null):
            arguments.append(("pointer", 0))
        elif isinstance(item, Scalar):
            value = item.value if isinstance(item.value, float) else evaluate(item.value, point)
            arguments.append((item.kind, value))
        else:
            kind = builder.slots[item.slot].type
            address = addresses[item.slot] + evaluate(item.offset, point) * kind.dtype.nbytes  # type: ignore[union-attr]
            if isinstance(item, Pointer):
                arguments.append(("pointer", address))
                continue
            sizes = [evaluate(size, point) for size in item.sizes]
            strides = [evaluate(stride, point) for stride in item.strides]
            box = encode_box(compiled.maps[item.form], address, sizes, strides, item.steps)
            arguments.append(("map", device.encode(box)))
    grid = tuple(evaluate(size, point) for size in step.grid)
    function = device.function(module, compiled.entry, compiled.shared_nbytes, compiled.cluster)
    return device.prepare(
        Launch(
            function,
            grid,  # type: ignore[arg-type]
            compiled.threads,
            compiled.shared_nbytes,
            compiled.cluster,
            compiled.waits,
            tuple(arguments),
        )
    )
