"""Contexts: what one stream of runs owns, its arena, its bound shapes, its buffers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from engine.errors import FeedError, KernelError
from engine.ir.sizes import evaluate, symbols
from engine.ir.types import Array, TensorType
from engine.kernels.runner import Runner
from engine.plan.slots import is_fixed, root_of
from engine.plan.structure import Program
from engine.runtime import blas
from engine.runtime.binding import BoundProgram, Buffers
from engine.runtime.feeds import bind_symbols, check_feeds, owned

if TYPE_CHECKING:
    from engine.runtime.engine import Engine

__all__ = ["Context"]

#: How many shapes keep their memory plan and pointers.
KEPT_SHAPES = 16


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Fresh memory; KernelError when there is not enough."""
    try:
        return np.empty(shape, dtype)
    except MemoryError:
        raise KernelError(
            f"there is no memory for {dtype}{list(shape)}; "
            "use smaller inputs or a machine with more memory"
        ) from None


class Context:
    """Runs an engine; one per thread or stream. Contexts of one engine run at the same time.

    An input that an output updates in place is a state: the context keeps its memory from run to
    run, zero at first, and it need not be fed again. What is fed is copied there, and then the
    output is an array of its own; otherwise it is a view of the state, which changes with each run.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._bound: OrderedDict[tuple[int, ...], BoundProgram] = OrderedDict()
        self._memory: Array = np.empty(0, np.uint8)
        self._runner: Runner | None = None
        self._fixed: dict[str, Array] = {}
        self._states: dict[int, Array] = {}
        program = engine.program
        #: Slots of the inputs that outputs update.
        self._updated = [
            root
            for root in {root_of(program, i): i for i in program.outputs}
            if program.slots[root].place == "input"
        ]

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
        """Give the arena back; the context can still be used and will take a new one.

        States begin anew.
        """
        self._bound.clear()
        self._states.clear()
        self._memory = np.empty(0, np.uint8)

    def bind(self, name: str, array: Array) -> None:
        """Fix the buffer of an input or output: later runs read or write it without a copy.

        An output that updates an input is bound by the input's name. Raises FeedError for an
        unknown name, a wrong dtype, or an array that is not C-contiguous.
        """
        program = self.engine.program
        slots = {program.slots[i].name: program.slots[i] for i in program.inputs}
        slots.update({program.slots[i].name: program.slots[i] for i in program.outputs})
        if name not in slots:
            raise FeedError(f"there is no input or output {name!r}; there are {sorted(slots)}")
        kind = slots[name].type
        if not isinstance(kind, TensorType) or array.dtype != kind.dtype.numpy:
            raise FeedError(f"{name!r} is {kind}, which {array.dtype} does not fit")
        if not array.flags.c_contiguous or not array.flags.aligned:
            raise FeedError(f"the buffer bound to {name!r} must be aligned and C-contiguous")
        if slots[name].alias is not None:
            raise FeedError(f"output {name!r} updates an input in place; bind that one")
        states = {program.slots[index].name for index in self._updated}
        if name in states and not array.flags.writeable:
            raise FeedError(f"the buffer bound to {name!r} is updated in place, so it is written")
        self._fixed[name] = array

    def reset(self) -> None:
        """Set every state that the context keeps to zero."""
        for state in self._states.values():
            state[...] = 0

    def run(
        self, inputs: Mapping[str, Any], *, outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Any]:
        """Run once: arrays by name in, arrays by name out.

        ``outputs`` gives arrays to write into (shape, dtype and C order must fit); others are new.
        Raises FeedError when an array does not fit the engine.
        """
        return self._run(inputs, outputs or {}, None)

    def profile(self, inputs: Mapping[str, Any]) -> dict[int, int]:
        """Run once and return the nanoseconds spent in each layer, by its index in the report."""
        times: dict[int, int] = {}
        self._run(inputs, {}, times)
        return times

    def _run(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Array],
        times: dict[int, int] | None,
    ) -> dict[str, Any]:
        program = self.engine.program
        names = set(self.engine.input_names)
        bound_inputs = {name: array for name, array in self._fixed.items() if name in names}
        for name in outputs:
            if name not in self.engine.output_names:
                raise FeedError(
                    f"there is no output {name!r}; there are {self.engine.output_names}"
                )
        given = {**bound_inputs, **inputs}
        states = {program.slots[index].name for index in self._updated}
        feeds = check_feeds(program, given, states - set(given))
        sizes = bind_symbols(program, feeds)
        feeds = self._with_states(feeds, sizes, inputs)
        bound = self._bind(sizes)
        buffers = self._buffers(bound, feeds, {**self._fixed, **outputs})
        # BLAS threads would spin while they wait for processors on which compilers run.
        busy = self.engine.kernels.compiling
        with blas.single_threaded() if busy else nullcontext():
            bound.run(buffers, self._runner, times)
        callers: list[Array] = []
        if len(buffers.outputs) < len(program.outputs):
            callers = [*_arrays(feeds), *buffers.outputs.values(), *self.engine.weights.values()]
        return {
            program.slots[slot].name: self._updated_state(bound, slot, buffers, inputs, outputs)
            if root_of(program, slot) in self._updated
            else self._result(bound, slot, buffers, callers)
            for slot in program.outputs
        }

    @staticmethod
    def _updated_state(
        bound: BoundProgram,
        slot: int,
        buffers: Buffers,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Array],
    ) -> Array:
        """An output that updates an input: a view of the state, or a copy for who fed the input."""
        program = bound.program
        found: Array = bound.view(slot, buffers)
        given = outputs.get(program.slots[slot].name)
        if given is not None:
            if given.shape != found.shape or given.dtype != found.dtype:
                raise FeedError(
                    f"output {program.slots[slot].name!r} is {found.dtype}{list(found.shape)}; the "
                    f"array given for it is {given.dtype}{list(given.shape)}"
                )
            np.copyto(given, found)
            return given
        fed = program.slots[root_of(program, slot)].name in inputs
        return found.copy() if fed else found

    def _with_states(
        self, feeds: list[Any], sizes: Mapping[str, int], inputs: Mapping[str, Any]
    ) -> list[Any]:
        """The feeds with states in the place of the inputs that are updated."""
        program = self.engine.program
        if not self._updated:
            return feeds
        found = dict(zip(program.inputs, feeds))
        for index in self._updated:
            slot = program.slots[index]
            fixed = self._fixed.get(slot.name)
            if fixed is not None and slot.name not in inputs:
                continue  # the caller's buffer is the state
            assert isinstance(slot.type, TensorType)
            unknown = sorted(set().union(*map(symbols, slot.type.dims)) - set(sizes))
            if unknown:
                raise FeedError(
                    f"no input tells the size {unknown[0]} of the state {slot.name!r}; feed it in "
                    "the first run, or bind it"
                )
            shape = tuple(evaluate(dim, sizes) for dim in slot.type.dims)
            state = fixed if fixed is not None else self._states.get(index)
            if state is None or state.shape != shape:
                state = _empty(shape, np.dtype(slot.type.dtype.numpy))
                state[...] = 0
                self._states[index] = state
            if found[index] is not None:
                np.copyto(state, found[index])
            found[index] = state
        return [found[index] for index in program.inputs]

    def _bind(self, sizes: dict[str, int]) -> BoundProgram:
        """The bound program for these sizes, planned on first use."""
        key = tuple(sizes[name] for name in sorted(sizes))
        bound = self._bound.get(key)
        addresses = self.engine.kernels.addresses
        if bound is None:
            bound = BoundProgram(self.engine.program, sizes, self.engine.weights, self.engine.calls)
            self._reserve(bound)
            self._prepare(bound, addresses)
            self._bound[key] = bound
            if len(self._bound) > KEPT_SHAPES:
                self._bound.popitem(last=False)
        elif (addresses is not None) != bound.compiled:
            self._prepare(bound, addresses)
        self._bound.move_to_end(key)
        return bound

    def _prepare(self, bound: BoundProgram, addresses: list[int] | None) -> None:
        if addresses and self._runner is None:
            self._runner = Runner(self.engine.threads)
        bound.prepare(self._memory, self._runner, addresses)

    def _reserve(self, bound: BoundProgram) -> None:
        """Have an arena large enough: for the greatest shapes at once when they are known."""
        needed = max(bound.arena.nbytes, self.engine.greatest_arena)
        if self._memory.nbytes >= needed:
            return
        raw = _empty((needed + 256,), np.dtype(np.uint8))
        start = -raw.ctypes.data % 256
        self._memory = raw[start : start + needed]
        for other in self._bound.values():
            self._prepare(other, self.engine.kernels.addresses)

    def _buffers(
        self, bound: BoundProgram, feeds: list[Any], given: Mapping[str, Array]
    ) -> Buffers:
        program, buffers = self.engine.program, Buffers()
        for index, array in zip(program.inputs, feeds):
            if is_fixed(program.slots[index]):
                buffers.inputs[index] = array
            else:
                buffers.values[index] = array
        for index in program.outputs:
            slot, name = program.slots[index], program.slots[index].name
            if not is_fixed(slot) or root_of(program, index) in self._updated:
                continue
            assert isinstance(slot.type, TensorType)
            shape = tuple(evaluate(dim, bound.sizes) for dim in slot.type.dims)
            array = given.get(name)
            if array is None:
                array = _empty(shape, np.dtype(slot.type.dtype.numpy))
            elif array.shape != shape or array.dtype != slot.type.dtype.numpy:
                raise FeedError(
                    f"output {name!r} is {slot.type.dtype.value}{list(shape)}; the array given for "
                    f"it is {array.dtype}{list(array.shape)}"
                )
            else:
                _check_given(name, array, program, buffers)
            buffers.outputs[index] = array
        return buffers

    @staticmethod
    def _result(bound: BoundProgram, slot: int, buffers: Buffers, callers: Sequence[Array]) -> Any:
        """An output; one that Python made is copied when it lies in memory that others change."""
        if slot in buffers.outputs:
            return buffers.outputs[slot]
        return owned(bound.view(slot, buffers), callers)


def _check_given(name: str, array: Array, program: Program, buffers: Buffers) -> None:
    """Raise FeedError for an output array that cannot be written while the program runs."""
    flags = array.flags
    if not (flags.c_contiguous and flags.writeable and flags.aligned):
        raise FeedError(f"the array for output {name!r} must be writable, aligned and C-contiguous")
    for slot, other in (*buffers.inputs.items(), *buffers.outputs.items()):
        if np.may_share_memory(array, other):
            raise FeedError(
                f"the array for output {name!r} and that of {program.slots[slot].name!r} overlap"
            )


def _arrays(values: Iterable[Any]) -> Iterator[Array]:
    """All arrays in values that may be sequences of them."""
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, list):
            yield from _arrays(value)
