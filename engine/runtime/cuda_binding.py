"""A CUDA program bound to one set of sizes and addresses: launches marshalled, graphs captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.cuda.cupy_arrays import DeviceTensor, cupy_module
from engine.cuda.device import Argument, Enqueue, Launch
from engine.cuda.tensor_map import encode_box, reach
from engine.errors import DeviceError, KernelError, PlanCorruptError
from engine.ir.sizes import evaluate
from engine.ir.types import Array, DType, TensorType
from engine.plan.device import (
    ClearStep,
    LaunchStep,
    LibraryStep,
    Null,
    Operand,
    Pointer,
    Scalar,
    TensorMap,
)
from engine.plan.guards import flat_steps
from engine.plan.lanes import lane_of, order_steps
from engine.plan.slots import is_fixed, locate, slot_nbytes
from engine.plan.structure import FlatStep, HostStep, KernelStep
from engine.runtime.cuda_layout import lay_out, named_layers
from engine.runtime.cuda_meaning import run_on_device
from engine.runtime.cuda_segments import (
    DeviceSegment,
    DeviceStep,
    HostSegment,
    Lanes,
    LaneSchedule,
)

if TYPE_CHECKING:
    from engine.runtime.cuda_engine import CudaEngine

__all__ = ["CudaBinding", "PortPlace"]

#: Blocks of a grid along x, y and z.
_MAX_GRID = (2**31 - 1, 65535, 65535)
_INTEGERS = {"i32": 1 << 31, "i64": 1 << 63}
#: Capability from which launches may overlap.
_OVERLAPS = (9, 0)


@dataclass(frozen=True, slots=True)
class PortPlace:
    """Where an input or output lies at one set of sizes."""

    address: int
    shape: tuple[int, ...]
    nbytes: int


class CudaBinding:
    """Runs one program at one set of sizes and addresses; used by one thread at a time.

    ``external`` gives addresses of inputs and outputs that do not lie in the context's memory.
    ``lanes`` are auxiliary streams that others who run after it use, too.
    """

    def __init__(
        self,
        engine: CudaEngine,
        sizes: Mapping[str, int],
        external: Mapping[int, int],
        lanes: Lanes | None = None,
    ) -> None:
        self.engine, self.program, self.device = engine, engine.program, engine.device
        self.sizes, self.external = dict(sizes), dict(external)
        self.steps = list(flat_steps(self.program.steps, sizes))
        self.order = order_steps(self.program, self.steps, sizes)
        self.layout = lay_out(self.program, self.steps, sizes, self.external)
        self.runs = 0
        self.generation = -1
        self.launches = 0
        self.ports: dict[int, PortPlace] = {}
        self._segments: list[DeviceSegment | HostSegment] = []
        self._base = self._zeros = 0
        self._lanes = lanes or Lanes(self.device)

    def close(self) -> None:
        """Destroy the graphs; the binding has to be prepared before it runs again."""
        for segment in self._segments:
            if isinstance(segment, DeviceSegment) and segment.graph is not None:
                self.device.destroy_graph(segment.graph)
                segment.graph = None
        self._segments = []
        self.generation = -1

    @property
    def graphs(self) -> int:
        """How many graphs were captured."""
        found = (s for s in self._segments if isinstance(s, DeviceSegment))
        return sum(segment.graph is not None for segment in found)

    # Preparing --------------------------------------------------------------------------------

    def prepare(self, base: int, zeros: int, generation: int, *, programmatic: bool) -> None:
        """Fix every address: of the context's memory and of its counters.

        Raises PlanCorruptError for a step that leaves its tensors.
        """
        self.close()
        self._base, self._zeros = base, zeros
        self.ports = self._port_places()
        self.runs, self.launches = 0, 0
        overlaps = programmatic and self.device.target.capability >= _OVERLAPS
        current: DeviceSegment | None = None
        for position, step in enumerate(self.steps):
            if isinstance(step, KernelStep):
                raise PlanCorruptError(
                    f"layer {step.layer} runs on a processor, the plan says it is for a GPU; "
                    "build the model again"
                )
            if isinstance(step, HostStep) and not self._is_device_copy(step):
                if step.function == "cupy":
                    cupy_module()
                call = self.engine.calls[id(step)].at(self.sizes)
                self._end_segment(current, position)
                self._segments.append(HostSegment(step, call))
                current = None
                continue
            if current is None:
                current = self._new_segment(position)
            ready = self._device_step(step, current, position, overlaps=overlaps)
            if ready is not None:
                if current.empty:
                    self._segments.append(current)
                current.add(position, ready)
                self.launches += 1
        self._end_segment(current, len(self.steps))
        self.generation = generation

    def _new_segment(self, position: int) -> DeviceSegment:
        if self.order is None:
            return DeviceSegment()
        return DeviceSegment(lanes=LaneSchedule(self._lanes, self.order, position))

    @staticmethod
    def _end_segment(segment: DeviceSegment | None, position: int) -> None:
        if segment is not None and segment.lanes is not None:
            segment.lanes.end(position)

    def _port_places(self) -> dict[int, PortPlace]:
        found = {}
        for index in (*self.program.inputs, *self.program.outputs):
            kind = self.program.slots[index].type
            if is_fixed(self.program.slots[index]):
                assert isinstance(kind, TensorType)
                shape = tuple(self._size(dim) for dim in kind.dims)
                found[index] = PortPlace(self.address(index), shape, self._nbytes(index))
        return found

    def _is_device_copy(self, step: HostStep) -> bool:
        slots = self.program.slots
        return (
            step.function == "copy"
            and step.inputs[0] is not None
            and is_fixed(slots[step.inputs[0]])
            and is_fixed(slots[step.outputs[0]])
        )

    def _device_step(
        self, step: FlatStep, segment: DeviceSegment, position: int, *, overlaps: bool
    ) -> DeviceStep | None:
        """A step with its addresses; None when there is nothing to do at these sizes."""
        lane = lane_of(step)
        if isinstance(step, LaunchStep):
            launch = self._launch(step, early=overlaps and segment.follows_launch(lane, position))
            if launch is not None:
                return DeviceStep(step.layer, self.device.prepare(launch), launch, lane)
            # What comes after an empty launch on its lane may rely on what that waited for.
            return (
                None if self.order is None else DeviceStep(step.layer, lambda _: None, None, lane)
            )
        if isinstance(step, LibraryStep):
            return DeviceStep(step.layer, self._library(step), None, lane)
        if isinstance(step, ClearStep):
            address, nbytes = self.address(step.slot), self._nbytes(step.slot)
            clear = partial(self.device.clear, address, nbytes)
            return DeviceStep(step.layer, clear, None, lane)
        assert isinstance(step, HostStep) and step.inputs[0] is not None
        source, to = self.address(step.inputs[0]), self.address(step.outputs[0])
        count = self._nbytes(step.outputs[0])
        if count != self._nbytes(step.inputs[0]):
            raise PlanCorruptError(f"layer {step.layer}: a copy changes its size")
        return DeviceStep(step.layer, lambda s: self.device.copy(to, source, count, s))

    def _nbytes(self, slot: int) -> int:
        return slot_nbytes(self.program, slot, self.sizes)

    def address(self, slot: int, elements: int = 0, extent: int = 0, where: str = "") -> int:
        """The device address of ``elements`` into a slot; at least ``extent`` more must be there.

        Raises PlanCorruptError when they are not.
        """
        root, nbytes = locate(self.program, slot, elements, self.sizes)
        kind, held = self.program.slots[slot].type, self._nbytes(root)
        assert isinstance(kind, TensorType)
        if nbytes < 0 or nbytes + extent * kind.dtype.nbytes > held:
            raise PlanCorruptError(
                f"{where or 'a step'} reaches {extent} elements from byte {nbytes} of a tensor of "
                f"{held} bytes; build the model again"
            )
        return self._root_address(root) + nbytes

    def _root_address(self, root: int) -> int:
        place = self.program.slots[root].place
        if root in self.external:
            return self.external[root]
        if place == "weight":
            return self.engine.weight_address(self.program.slots[root].name)
        if place == "zeros":
            return self._zeros + self.layout.zeros[root]
        return self._base + self.layout.places[root]

    def _launch(self, step: LaunchStep, *, early: bool) -> Launch | None:
        where = self._where(step.layer)
        grid = tuple(evaluate(dim, self.sizes) for dim in step.grid)
        if 0 in grid:
            return None
        if any(not 0 < size <= most for size, most in zip(grid, _MAX_GRID)):
            raise PlanCorruptError(f"{where} has a grid of {grid} blocks; build the model again")
        function = self.program.functions[step.function]
        arguments = tuple(self._argument(item, step, where) for item in step.parameters)
        return Launch(
            function=self.engine.function(step.function),
            grid=(grid[0], grid[1], grid[2]),
            threads=function.threads,
            shared_nbytes=function.shared_nbytes,
            cluster=function.cluster,
            early=early and function.waits,
            arguments=arguments,
        )

    def _argument(
        self, item: Pointer | Scalar | TensorMap | Null, step: LaunchStep, where: str
    ) -> Argument:
        if isinstance(item, Null):
            return ("pointer", 0)
        if isinstance(item, Pointer):
            offset = evaluate(item.offset, self.sizes)
            return ("pointer", self.address(item.slot, offset, where=where))
        if isinstance(item, TensorMap):
            return ("map", self._tensor_map(item, step, where))
        if item.kind == "f32":
            number = item.value if isinstance(item.value, float) else self._size(item.value)
            return ("f32", float(number))
        assert not isinstance(item.value, float)
        value, limit = self._size(item.value), _INTEGERS[item.kind]
        if not -limit <= value < limit:
            raise PlanCorruptError(f"{where}: the size {value} does not fit into {item.kind}")
        return (item.kind, value)

    def _size(self, dim: Any) -> int:
        return evaluate(dim, self.sizes)

    def _tensor_map(self, item: TensorMap, step: LaunchStep, where: str) -> bytes:
        sizes = [self._size(dim) for dim in item.sizes]
        strides = [self._size(dim) for dim in item.strides]
        if min(strides) < 0:
            raise PlanCorruptError(f"{where}: a tensor map has a negative stride")
        extent = reach(sizes, strides)
        address = self.address(item.slot, self._size(item.offset), extent, where)
        form = self.program.functions[step.function].maps[item.form]
        kind = self.program.slots[item.slot].type
        assert isinstance(kind, TensorType)
        if kind.dtype.nbytes != DType(form.dtype).nbytes:
            raise PlanCorruptError(f"{where}: a tensor map of {form.dtype} lies over {kind}")
        return self.device.encode(encode_box(form, address, sizes, strides, item.steps))

    def _library(self, step: LibraryStep) -> Enqueue:
        where = self._where(step.layer)
        prepared = self.engine.library_call(step, [self._size(dim) for dim in step.sizes])
        operands = []
        for item, nbytes in zip_longest(step.operands, prepared.operand_nbytes, fillvalue=0):
            if not isinstance(item, Operand):
                raise PlanCorruptError(f"{where} has too few operands; build the model again")
            kind = self.program.slots[item.slot].type
            assert isinstance(kind, TensorType)
            extent = -(-nbytes // kind.dtype.nbytes)
            operands.append(self.address(item.slot, self._size(item.offset), extent, where))
        workspace = held = 0
        if step.workspace is not None:
            workspace, held = self.address(step.workspace), self._nbytes(step.workspace)
        if prepared.workspace_nbytes > held:
            raise KernelError(
                f"{where}: {step.library} needs {prepared.workspace_nbytes} bytes of workspace, "
                f"the plan gives {held}; build the model again with this version of {step.library}"
            )
        lock = self.engine.library_lock

        def enqueue(stream: int) -> None:
            with lock:
                prepared.run(operands, workspace, held, stream)

        return enqueue

    def _where(self, layer: int) -> str:
        return f"layer {self.program.layers[layer].name!r} ({self.program.layers[layer].tactic})"

    # Running ----------------------------------------------------------------------------------

    def run(self, stream: int, values: dict[int, Any], *, capture_on: int | None) -> None:
        """Enqueue everything on a stream; host steps wait for it.

        ``values`` are what Python owns, by slot. With ``capture_on``, a stream of the context's
        own, the second run captures a graph of each segment and later ones only launch it.
        """
        for segment in self._segments:
            if isinstance(segment, HostSegment):
                self._run_host(segment, stream, values)
            elif capture_on is None or self.runs == 0:
                segment.enqueue(stream)
            else:
                if segment.graph is None:
                    enqueue = partial(segment.enqueue, capture_on)
                    segment.graph = self._captured(enqueue, capture_on, segment)
                self.device.launch_graph(segment.graph, stream)
        self.runs += 1

    def _captured(self, enqueue: Callable[[], None], stream: int, segment: DeviceSegment) -> int:
        """A graph of what is enqueued on a stream."""
        self.device.begin_capture(stream)
        try:
            enqueue()
            return self.device.end_capture(stream)
        except BaseException as error:
            self.device.abandon_capture(stream)
            if not isinstance(error, (DeviceError, KernelError)):
                raise
            layers = named_layers(self.program, segment.layers)
            raise type(error)(
                f"no CUDA graph could be captured of the layers {layers}: {error}; "
                "set capture = False on the context to launch them one by one"
            ) from error

    def run_apart(self, stream: int, values: dict[int, Any]) -> None:
        """Run step by step, waiting after each: a fault is reported with its layer."""
        for segment in self._segments:
            if isinstance(segment, HostSegment):
                self._apart(segment.step.layer, stream, self._run_host, segment, stream, values)
                continue
            for step in segment.steps:
                self._apart(step.layer, stream, step.enqueue, stream)

    def _apart(self, layer: int, stream: int, enqueue: Callable[..., None], *given: Any) -> None:
        """Enqueue and wait; a fault is the layer's."""
        try:
            enqueue(*given)
            self.device.synchronize(stream)
        except DeviceError as error:
            raise type(error)(f"{self._where(layer)}: {error}") from error

    def profile(
        self, stream: int, values: dict[int, Any], *, capture_on: int | None
    ) -> dict[int, int]:
        """Run once, no kernel overlapping another, and return the nanoseconds of each layer.

        With ``capture_on`` the events between layers are part of graphs, so that times hold no
        waiting for the host.
        """
        times: dict[int, int] = {}
        for segment in self._segments:
            if isinstance(segment, HostSegment):
                self.device.synchronize(stream)
                started = time.perf_counter_ns()
                self._run_host(segment, stream, values)
                self.device.synchronize(stream)
                spent = time.perf_counter_ns() - started
                times[segment.step.layer] = times.get(segment.step.layer, 0) + spent
            else:
                self._profile(segment, stream, capture_on, times)
        return times

    def _profile(
        self, segment: DeviceSegment, stream: int, capture_on: int | None, times: dict[int, int]
    ) -> None:
        device = self.device
        groups = [
            (layer, [self._alone(step) for step in steps])
            for layer, steps in groupby(segment.steps, key=lambda step: step.layer)
        ]
        events = [device.create_event(timed=True) for _ in range(len(groups) + 1)]
        on, record = stream, device.record
        if capture_on is not None:
            on, record = capture_on, device.record_in_graph

        def enqueue() -> None:
            record(events[0], on)
            for event, (_, steps) in zip(events[1:], groups):
                for step in steps:
                    step(on)
                record(event, on)

        graph = None
        try:
            if capture_on is None:
                enqueue()
            else:
                graph = self._captured(enqueue, capture_on, segment)
                device.launch_graph(graph, stream)
            device.synchronize(stream)
            for (layer, _), start, end in zip(groups, events, events[1:]):
                times[layer] = times.get(layer, 0) + device.elapsed_ns(start, end)
        finally:
            if graph is not None:
                device.destroy_graph(graph)
            for event in events:
                device.destroy_event(event)

    def _alone(self, step: DeviceStep) -> Enqueue:
        """The step, never overlapping with the one before it."""
        if step.launch is None or not step.launch.early:
            return step.enqueue
        return self.device.prepare(replace(step.launch, early=False))

    # Host steps -------------------------------------------------------------------------------

    def _run_host(self, segment: HostSegment, stream: int, values: dict[int, Any]) -> None:
        if segment.step.function == "cupy":
            inputs = [None if slot is None else self._tensor(slot) for slot in segment.step.inputs]
            outputs = [self._tensor(slot) for slot in segment.step.outputs]
            run_on_device(segment.call, inputs, outputs, self.device.index, stream)
            return
        given = [
            None if slot is None else self.fetch(slot, stream, values)
            for slot in segment.step.inputs
        ]
        self.device.synchronize(stream)
        results = segment.call(given)
        for slot, result in zip(segment.step.outputs, results):
            self._store(slot, result, stream, values, segment.call.where)

    def _tensor(self, slot: int) -> DeviceTensor:
        kind = self.program.slots[slot].type
        assert isinstance(kind, TensorType)
        shape = tuple(self._size(dim) for dim in kind.dims)
        return DeviceTensor(self.address(slot), shape, kind.dtype.numpy)

    def fetch(self, slot: int, stream: int, values: Mapping[int, Any]) -> Any:
        """A value on the host; an array is filled once the stream has been waited for."""
        found = self.program.slots[slot]
        if not is_fixed(found):
            weight = found.place == "weight"
            return self.engine.weights[found.name] if weight else values.get(slot)
        assert isinstance(found.type, TensorType)
        root, nbytes = locate(self.program, slot, 0, self.sizes)
        shape = tuple(self._size(dim) for dim in found.type.dims)
        dtype = found.type.dtype.numpy
        if self.program.slots[root].place == "weight":
            data = self.engine.weights[self.program.slots[root].name].reshape(-1).view(np.uint8)
            count = self._nbytes(slot)
            return data[nbytes : nbytes + count].view(dtype).reshape(shape)
        array: Array = np.empty(shape, dtype)
        self.device.download(array.ctypes.data, self.address(slot), array.nbytes, stream)
        return array

    def _store(
        self, slot: int, result: Any, stream: int, values: dict[int, Any], where: str
    ) -> None:
        found = self.program.slots[slot]
        if not is_fixed(found):
            tensor = isinstance(found.type, TensorType) and result is not None
            values[slot] = np.asarray(result) if tensor else result
            return
        assert isinstance(found.type, TensorType)
        shape = tuple(self._size(dim) for dim in found.type.dims)
        array = np.asarray(result)
        if array.shape != shape or array.dtype != found.type.dtype.numpy:
            raise KernelError(
                f"{where} made {array.dtype}{list(array.shape)}, expected "
                f"{found.type.dtype.value}{list(shape)}"
            )
        array = np.ascontiguousarray(array)
        self.device.upload(self.address(slot), array.ctypes.data, array.nbytes, stream)
