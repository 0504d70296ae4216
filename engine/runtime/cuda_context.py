"""Contexts on a GPU: a stream, an arena, bound shapes with their graphs, buffers and states."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from engine.errors import DeviceError, DeviceMemoryError, FeedError
from engine.ir.sizes import evaluate, symbols
from engine.ir.types import TensorType
from engine.plan.slots import is_fixed, root_of
from engine.runtime.cuda_binding import CudaBinding
from engine.runtime.cuda_feeds import (
    DeviceArray,
    DeviceView,
    check_cuda_feeds,
    check_view,
    device_view,
    on_device,
)
from engine.runtime.cuda_layout import ALIGNMENT, named_layers
from engine.runtime.cuda_loaded import Loaded
from engine.runtime.cuda_memory import Block, Pending, Stream, spelled_nbytes
from engine.runtime.cuda_segments import Lanes
from engine.runtime.cuda_transfers import Fixed, Run, State, Transfers
from engine.runtime.feeds import bind_symbols

if TYPE_CHECKING:
    from engine.runtime.cuda_engine import CudaEngine

__all__ = ["CudaContext"]

#: How many shapes keep their addresses and graphs, and how many launches they may hold in all
#: (the driver keeps some KiB for each).
KEPT_SHAPES = 16
KEPT_LAUNCHES = 20_000
_HELPS = "use smaller inputs or a narrower profile, close other contexts"


class CudaContext:
    """Runs an engine on one stream; one per thread. Contexts of one engine run at the same time.

    NumPy arrays go in through pinned memory and NumPy arrays come out. Arrays on the GPU (CuPy,
    torch, anything with DLPack or the array interface) are copied on the device into buffers whose
    addresses never change, unless `bind` fixed them, and `DeviceArray` comes out; such a run only
    enqueues. The first run of a shape launches its kernels, the second captures a CUDA graph, later
    ones launch the graph. An input that an output updates in place is a state: its memory stays
    from run to run, it need not be fed again, and its output is that same memory.

    ``capture``: capture graphs. ``programmatic``: let kernels overlap where they can.
    ``synchronous``: wait after each step, so that a fault is reported with its layer.
    """

    def __init__(self, engine: CudaEngine, stream: object = None) -> None:
        self.engine, self.device = engine, engine.device
        self.device.use()
        self.stream = Stream(self.device, stream)
        self.capture = True
        self.synchronous = False
        self._programmatic = True
        pending = self.stream.pending
        self._memory, self._zeros = Block(self.device, pending), Block(self.device, pending)
        self._generation = 0
        self._bound: OrderedDict[tuple[Any, ...], CudaBinding] = OrderedDict()
        #: Keys of bound shapes by the feeds' shapes, which buffers they use, and `_ports`.
        self._recent: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        #: Changes whenever a buffer is bound or a state gets other memory.
        self._ports = 0
        self._fixed: dict[str, Fixed] = {}
        #: Buffers that are not bound any more and may still be in use on the stream.
        self._unbound: list[DeviceView] = []
        self._states: dict[int, State] = {}
        self._transfers = Transfers(engine, self.stream, self._fixed, self._states)
        self._capture_stream: Stream | None = None
        self._lanes = Lanes(self.device)
        program = engine.program
        #: Outputs that update an input, by the slot of the input.
        self._updates = {
            root_of(program, index): index
            for index in program.outputs
            if program.slots[index].alias is not None
        }
        self._updates = {r: i for r, i in self._updates.items() if r in program.inputs}
        # What runs needs the engine's kernels and weights: they are kept until it has ended.
        weakref.finalize(self, _leave, pending, engine.loaded).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what runs and give all memory back; the context can still be used.

        States begin anew, buffers stay bound.
        """
        with contextlib.suppress(DeviceError):
            self.device.use()
            self.stream.pending.finish()
            for bound in self._bound.values():
                bound.close()
        self._bound.clear()
        self._recent.clear()
        self._unbound.clear()
        self._memory.close()
        self._zeros.close()
        self._states.clear()
        self._transfers.close()
        self._lanes.close()
        self._capture_stream = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    @property
    def programmatic(self) -> bool:
        """Whether kernels may begin while the ones before them end."""
        return self._programmatic

    @programmatic.setter
    def programmatic(self, value: bool) -> None:
        if value != self._programmatic:
            self._programmatic = value
            self._generation += 1

    # Buffers of callers and states ------------------------------------------------------------

    def bind(self, name: str, array: Any) -> None:
        """Fix the buffer of an input or output: later runs read or write it without a copy.

        ``array`` lies on the engine's GPU, C-contiguous, at an address that is a multiple of 256,
        and is the caller's to keep in order with the context's stream. An output that updates an
        input is bound by the input's name. Raises FeedError for anything else.
        """
        self.device.use()
        program = self.engine.program
        index = self._slot(name)
        slot = program.slots[index]
        if slot.alias is not None:
            into = program.slots[root_of(program, index)].name
            raise FeedError(f"output {name!r} updates the input {into!r} in place; bind that one")
        if not is_fixed(slot):
            raise FeedError(f"{name!r} is {slot.type}, which the host holds; it cannot be bound")
        if not on_device(array):
            raise FeedError(
                f"the buffer bound to {name!r} is {type(array).__name__}, expected an array on "
                "the GPU; feed other arrays to run"
            )
        view = device_view(array, f"the buffer bound to {name!r}", self.device.index, self.stream)
        check_view(f"the buffer bound to {name!r}", slot.type, view)
        if view.address % ALIGNMENT:
            raise FeedError(
                f"the buffer bound to {name!r} begins at {view.address:#x}, expected a multiple of "
                f"{ALIGNMENT}; bind an array with memory of its own"
            )
        self.unbind(name)
        self._fixed[name] = Fixed(array, view)

    def unbind(self, name: str) -> None:
        """Let an input or output go its usual way again.

        The buffer is kept until what was enqueued before has run.
        """
        old = self._fixed.pop(name, None)
        if old is not None:
            # The stream that it named then may be gone by now.
            self._unbound.append(replace(old.view, stream=None))
        self._ports += 1

    def _slot(self, name: str) -> int:
        program = self.engine.program
        ports = {program.slots[i].name: i for i in (*program.outputs, *program.inputs)}
        if name not in ports:
            raise FeedError(f"there is no input or output {name!r}; there are {sorted(ports)}")
        return ports[name]

    def _state_slot(self, name: str) -> int:
        program = self.engine.program
        index = root_of(program, self._slot(name))
        if index not in self._updates:
            known = sorted(program.slots[i].name for i in self._updates)
            raise FeedError(f"{name!r} is no state; the inputs updated in place are {known}")
        return index

    def state(self, name: str) -> Any:
        """The memory of a state, by the name of its input or output: the bound array or a view.

        What it shows changes with every run. Raises FeedError before the first run.
        """
        index = self._state_slot(name)
        slot = self.engine.program.slots[index]
        if slot.name in self._fixed:
            return self._fixed[slot.name].array
        state = self._states.get(index)
        if state is None:
            raise FeedError(f"the state {name!r} has no shape before the first run")
        assert isinstance(slot.type, TensorType)
        return DeviceArray(
            state.memory.address, state.shape, slot.type.dtype, self.stream, state.memory
        )

    def reset(self) -> None:
        """Set every state that the context keeps to zero."""
        self.device.use()
        self.stream.pending.begin()
        for state in self._states.values():
            self.device.clear(state.memory.address, state.memory.nbytes, self.stream.handle)

    def _state_address(self, index: int, sizes: Mapping[str, int]) -> int:
        """Memory for a state; zero when it is new or has another shape than before."""
        kind = self.engine.program.slots[index].type
        assert isinstance(kind, TensorType)
        shape = tuple(evaluate(dim, sizes) for dim in kind.dims)
        state = self._states.get(index)
        if state is None or state.shape != shape:
            # A new block: whoever still looks at the old state keeps its memory.
            state = State(Block(self.device, self.stream.pending), shape)
            nbytes = max(math.prod(shape) * kind.dtype.nbytes, 1)
            name = self.engine.program.slots[index].name
            purpose = f"the state {name!r} with the shape {list(shape)}"
            state.memory.grow(nbytes, purpose, _HELPS)
            self.device.clear(state.memory.address, state.memory.nbytes, self.stream.handle)
            self._states[index] = state
            self._ports += 1
        return state.memory.address

    # Running ----------------------------------------------------------------------------------

    def run(
        self, inputs: Mapping[str, Any], *, outputs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run once: arrays by name in, arrays by name out.

        ``outputs`` gives arrays to write into, of NumPy or on the GPU. Raises FeedError when an
        array does not fit the engine, DeviceMemoryError when the device is full, DeviceError for a
        fault of the device, which may be one of an earlier run that nobody waited for.
        """
        run, binding = self._begin(inputs, outputs or {})
        try:
            if self.synchronous:
                binding.run_apart(self.stream.handle, run.values)
            else:
                capture = self._capturing() if self.capture and binding.runs else None
                binding.run(self.stream.handle, run.values, capture_on=capture)
            return self._transfers.give(run, binding)
        except DeviceMemoryError:
            raise
        except DeviceError as error:
            raise self._with_layers(error, binding) from error

    def profile(self, inputs: Mapping[str, Any]) -> dict[int, int]:
        """Run once, kernel by kernel, and return the nanoseconds of each layer, by its index.

        Kernels do not overlap; states go on by one run, or by two at the first run of a shape.
        """
        run, binding = self._begin(inputs, {})
        try:
            if binding.runs == 0:  # the first launch of a kernel loads it
                binding.run(self.stream.handle, dict(run.values), capture_on=None)
            capture = self._capturing() if self.capture else None
            return binding.profile(self.stream.handle, run.values, capture_on=capture)
        except DeviceError as error:
            raise self._with_layers(error, binding) from error

    def synchronize(self) -> None:
        """Wait on the host until everything enqueued so far has run; DeviceError for a fault."""
        self.device.use()
        self.device.synchronize(self.stream.handle)

    @staticmethod
    def _with_layers(error: DeviceError, binding: CudaBinding) -> DeviceError:
        layers = named_layers(binding.program, [step.layer for step in binding.steps])
        return type(error)(
            f"{error}; what ran were the layers {layers}; run once with synchronous = True on "
            "the context to learn which of them it is"
        )

    def _capturing(self) -> int:
        """A stream to capture on, where nothing ever runs.

        A caller's may be in use by other threads, and ours may have to be waited for meanwhile, by
        a collector that gives back memory of ours: while it is captured it cannot be.
        """
        if self._capture_stream is None:
            self._capture_stream = Stream(self.device)
        return self._capture_stream.handle

    def _begin(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> tuple[Run, CudaBinding]:
        """Check what was given, bind its shapes, copy the inputs to the device."""
        self.device.use()
        if self._unbound:
            self._transfers.hold(self._unbound)
            self._unbound = []
        self.stream.pending.begin()
        program = self.engine.program
        for name in outputs:
            if name not in self.engine.output_names:
                raise FeedError(
                    f"there is no output {name!r}; there are {self.engine.output_names}"
                )
        names = set(self.engine.input_names)
        fixed = {name: item.view for name, item in self._fixed.items() if name in names}
        states = frozenset(program.slots[index].name for index in self._updates)
        given = {**fixed, **inputs}
        feeds = check_cuda_feeds(program, given, self.stream, states - set(given))
        run = Run(dict(zip(program.inputs, feeds)), outputs)
        binding = self._bind(feeds, frozenset(name for name in fixed if name not in inputs))
        self._transfers.take(run, binding)
        return run, binding

    def _check_settled(self, sizes: Mapping[str, int]) -> None:
        for index in self._updates:
            kind = self.engine.program.slots[index].type
            assert isinstance(kind, TensorType)
            for dim in kind.dims:
                unknown = sorted(symbols(dim) - set(sizes))
                if unknown:
                    name = self.engine.program.slots[index].name
                    raise FeedError(
                        f"no input tells the size {unknown[0]} of the state {name!r}; feed it in "
                        "the first run, or bind it"
                    )

    def _bind(self, feeds: list[Any], inputs: frozenset[str]) -> CudaBinding:
        """The program bound to the feeds' sizes and to the callers' buffers, planned on first use.

        ``inputs`` names the inputs that are read from buffers of the caller's.
        """
        shapes = tuple(getattr(feed, "shape", None) for feed in feeds)
        quick = (shapes, inputs, self._ports)
        key = self._recent.get(quick)
        if key is not None and self._bound[key].generation == self._generation:
            self._bound.move_to_end(key)
            return self._bound[key]
        sizes = bind_symbols(self.engine.program, feeds)
        self._check_settled(sizes)
        external = self._external(sizes, inputs)
        key = (*(sizes[name] for name in sorted(sizes)), *sorted(external.items()))
        bound = self._bound.get(key)
        if bound is None:
            bound = CudaBinding(self.engine, sizes, external, self._lanes)
        self._reserve(bound)
        if bound.generation != self._generation:
            bound.prepare(
                self._memory.address,
                self._zeros.address,
                self._generation,
                programmatic=self._programmatic,
            )
        self._bound[key] = bound
        self._bound.move_to_end(key)
        self._forget()
        if len(self._recent) > 4 * KEPT_SHAPES:
            self._recent.clear()
        self._recent[shapes, inputs, self._ports] = key
        return bound

    def _forget(self) -> None:
        """Drop the shapes that were not used for longest."""
        held = sum(bound.launches for bound in self._bound.values())
        while len(self._bound) > 1 and (len(self._bound) > KEPT_SHAPES or held > KEPT_LAUNCHES):
            self._recent.clear()
            _, oldest = self._bound.popitem(last=False)
            held -= oldest.launches
            oldest.close()

    def _external(self, sizes: Mapping[str, int], inputs: frozenset[str]) -> dict[int, int]:
        """Addresses of inputs and outputs outside of the context's own memory, by slot."""
        program, found = self.engine.program, {}
        spans: list[tuple[int, int, str, bool]] = []
        for index in (*program.inputs, *program.outputs):
            slot = program.slots[index]
            if slot.alias is not None:
                continue
            fixed = self._fixed.get(slot.name)
            is_input = slot.place == "input"
            if index in self._updates and fixed is None:
                found[index] = self._state_address(index, sizes)
            fed = is_input and slot.name not in inputs and index not in self._updates
            if fixed is None or fed:
                continue
            assert isinstance(slot.type, TensorType)
            shape = tuple(evaluate(dim, sizes) for dim in slot.type.dims)
            if fixed.view.shape != shape:
                raise FeedError(
                    f"{slot.name!r} is {slot.type.dtype.value}{list(shape)}, the buffer bound to "
                    f"it has the shape {list(fixed.view.shape)}"
                )
            found[index] = fixed.view.address
            begin, end = fixed.view.address, fixed.view.address + fixed.view.nbytes
            for first, last, other, other_input in spans:
                if begin < last and first < end and not (is_input and other_input):
                    raise FeedError(f"the buffers bound to {slot.name!r} and {other!r} overlap")
            spans.append((begin, end, slot.name, is_input))
        return found

    def _reserve(self, bound: CudaBinding) -> None:
        """Have enough memory: for the greatest shapes at once when they are known."""
        layout = bound.layout
        shapes = ", ".join(f"{name}={size}" for name, size in sorted(bound.sizes.items()))
        purpose = (
            f"a context at {shapes or 'its only shapes'} ({spelled_nbytes(layout.arena.nbytes)} "
            f"for intermediate values, {spelled_nbytes(layout.nbytes - layout.arena.nbytes)} for "
            f"inputs and outputs; the engine's weights hold "
            f"{spelled_nbytes(self.engine.weights_nbytes)} already)"
        )
        if layout.nbytes > self._memory.nbytes:
            wished = self.engine.greatest_nbytes(frozenset(bound.external))
            self._grow(self._memory, layout.nbytes, purpose, wished)
        if layout.zeros_nbytes > self._zeros.nbytes:
            self._grow(self._zeros, layout.zeros_nbytes, f"counters of {purpose}", 0)
            self.device.clear(self._zeros.address, self._zeros.nbytes, self.stream.handle)

    def _grow(self, block: Block, nbytes: int, purpose: str, wished: int) -> None:
        """Grow memory that bound shapes point into; what is wished for may be refused."""
        self._generation += 1
        if block.nbytes:
            self.device.synchronize(self.stream.handle)
        self._transfers.results.trim(0)
        if wished > nbytes:
            with contextlib.suppress(DeviceMemoryError):
                block.grow(wished, purpose, _HELPS)
                return
        block.grow(nbytes, purpose, _HELPS)


def _leave(pending: Pending, loaded: Loaded) -> None:
    """A context is gone: what it enqueued ends before ``loaded`` is let go."""
    with contextlib.suppress(DeviceError):
        loaded.device.use()
        pending.finish()
