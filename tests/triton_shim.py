"""Runs Triton kernels in Triton's interpreter over NumPy arrays: no torch, no GPU.

The interpreter wants arrays with the parts of torch's interface that it touches; `Feed` has those.
Triton's own helper functions (`tl.zeros`, `tl.sum`, ...) were made for the compiler when triton was
imported; while a kernel runs they are replaced by interpreted ones.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from engine.cuda.kernel import DeviceKernel
from engine.cuda.triton_compiler import load_function
from engine.ir.graph import Graph
from engine.ir.sizes import evaluate
from engine.ir.types import Array, TensorType
from engine.lower.builder import ProgramBuilder
from engine.plan.device import LaunchStep, Pointer, Scalar, TensorMap
from engine.plan.recipes import apply
from engine.plan.structure import Slot, Symbol
from engine.tactics import Candidate
from tests.paged_memory import Reach

_NAMES = {
    np.dtype(np.float16): "float16",
    np.dtype(np.float32): "float32",
    np.dtype(np.float64): "float64",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
    np.dtype(np.int8): "int8",
    np.dtype(np.uint8): "uint8",
    np.dtype(np.int16): "int16",
    np.dtype(np.int32): "int32",
    np.dtype(np.int64): "int64",
    np.dtype(np.bool_): "bool",
}


class _Name(str):
    """The name of an element type, with its size as a torch dtype has it."""

    itemsize: int
    is_floating_point: bool


class Feed:
    """An array as the interpreter wants it, from ``offset`` elements on."""

    def __init__(self, array: Array, offset: int = 0) -> None:
        assert array.flags.c_contiguous
        self.array, self.offset = array, offset
        self.dtype = _Name(_NAMES[array.dtype])
        self.dtype.itemsize = array.dtype.itemsize
        self.dtype.is_floating_point = array.dtype.kind not in "iub"

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data) + self.offset * self.array.dtype.itemsize


def run(kernel: DeviceKernel, grid: Sequence[int], arguments: Mapping[str, Any]) -> None:
    """Run a kernel over arrays (or `Feed`s, descriptors, numbers) by parameter name, in place."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder, knobs.runtime.scope():
        knobs.runtime.interpret = True
        with _interpreted_helpers():
            function = load_function(kernel, Path(folder))
            _execute(function, tuple(grid), {**arguments, **dict(kernel.constants)})


def run_step(
    step: LaunchStep, kernel: DeviceKernel, slots: Mapping[int, Array], sizes: Mapping[str, int]
) -> None:
    """Run a launch over the memory of its slots; ``sizes`` binds the symbols."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    arguments: dict[str, Any] = {}
    parameters = iter(step.parameters)
    for name, form in kernel.signature:
        parameter = next(parameters)
        if isinstance(parameter, Pointer):
            arguments[name] = Feed(slots[parameter.slot], evaluate(parameter.offset, sizes))
        elif isinstance(parameter, Scalar):
            value = parameter.value
            plain = value if isinstance(value, float) else evaluate(value, sizes)
            arguments[name] = plain
        else:
            assert isinstance(parameter, TensorMap)
            shape = [evaluate(size, sizes) for size in parameter.sizes]
            strides = [evaluate(stride, sizes) for stride in parameter.strides]
            listed = [next(parameters) for _ in range(2 * len(shape))]
            told = [evaluate(item.value, sizes) for item in listed if isinstance(item, Scalar)]
            assert told == [*shape, *strides], "a descriptor's list differs from its map"
            box = [int(size) for size in form.split("[")[1].split("]")[0].split(",")]
            feed = Feed(slots[parameter.slot], evaluate(parameter.offset, sizes))
            arguments[name] = TensorDescriptor(feed, shape, strides, box)
    assert len(list(parameters)) == 2, "two null pointers end the list"
    run(kernel, [evaluate(size, sizes) for size in step.grid], arguments)


def run_layer(
    graph: Graph,
    candidate: Candidate,
    feeds: Mapping[str, Array],
    symbols: Sequence[Symbol] = (),
    sizes: Mapping[str, int] | None = None,
) -> list[Array]:
    """The outputs of a graph of one node whose candidate launches Triton kernels only.

    Memory that nothing has written holds NaN, and counters must be left at zero.
    """
    sizes = sizes or {}
    builder = ProgramBuilder(graph, symbols)
    node = graph.nodes[0]
    for value in graph.inputs:
        builder.set_slot(value, builder.add_slot(Slot(value.type, "input", value.name)))
    candidate.emit(builder, node, builder.layer(node, candidate.tactic, candidate.choice))
    memory: dict[int, Array] = {}
    for index, slot in enumerate(builder.slots):
        if slot.place == "weight":
            packed = builder.packed[str(slot.name)]
            sources = [np.asarray(source.constant) for source in packed.sources]
            memory[index] = apply(packed.recipe, sources)
        elif slot.place == "input":
            memory[index] = np.ascontiguousarray(feeds[str(slot.name)])
        else:
            assert isinstance(slot.type, TensorType)
            shape = [evaluate(dim, sizes) for dim in slot.type.dims]
            poison = 0 if slot.place == "zeros" else np.nan
            with np.errstate(invalid="ignore"):
                memory[index] = np.full(shape, poison).astype(slot.type.dtype.numpy)
    for step in builder.steps:
        assert isinstance(step, LaunchStep)
        run_step(step, builder.device_kernels[step.function], memory, sizes)
    zeros = [memory[i] for i, slot in enumerate(builder.slots) if slot.place == "zeros"]
    assert not any(counters.any() for counters in zeros), "counters are not left at zero"
    return [memory[builder.slot(value)] for value in node.outputs]


def _execute(function: Any, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
    from triton.runtime import interpreter

    rewritten = function.rewrite()
    from triton.language import standard

    # Both names of the language: the one kernels use, and the one its own helpers use.
    reach = Reach(_arrays(arguments.values()))
    scopes = [interpreter._patch_lang(rewritten), interpreter._patch_lang(standard.zeros.fn)]
    constants = {
        name for name, item in inspect.signature(rewritten).parameters.items()
        if "constexpr" in str(item.annotation)
    }  # fmt: skip
    try:
        values = {
            name: value
            if name in constants
            else interpreter._implicit_cvt(Feed(value) if isinstance(value, np.ndarray) else value)
            for name, value in arguments.items()
        }
        whole = (*grid, 1, 1)[:3]
        interpreter.interpreter_builder.set_grid_dim(*whole)
        with np.errstate(all="ignore"), _watched(reach):
            for place in np.ndindex(*whole):
                interpreter.interpreter_builder.set_grid_idx(*place)
                rewritten(**values)
    finally:
        for scope in reversed(scopes):
            scope.restore()


def _arrays(arguments: Iterable[Any]) -> list[Array]:
    """The memory that arguments point into, each once."""
    found: dict[int, Array] = {}
    for item in arguments:
        array = item
        if not isinstance(item, np.ndarray):
            feed = getattr(item, "base", item)  # of a descriptor
            array = feed.array if isinstance(feed, Feed) else None
        if isinstance(array, np.ndarray):
            found[int(array.ctypes.data)] = array
    return list(found.values())


_WATCHED: list[Reach] = []


@contextlib.contextmanager
def _watched(reach: Reach) -> Iterator[None]:
    """Every access of the interpreter must be inside of the launch's arrays."""
    from triton.runtime import interpreter

    held = interpreter._interpreter
    interpreter._interpreter = _Accesses(held, reach)
    _WATCHED.append(reach)
    try:
        yield
    finally:
        interpreter._interpreter = held
        _WATCHED.pop()


class _Accesses:
    """Triton's accesses to memory, checked before they happen."""

    def __init__(self, accesses: Any, reach: Reach) -> None:
        self.accesses, self.reach = accesses, reach

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accesses, name)

    def load(self, at: Array, mask: Array, other: Array, dtype: Any) -> Any:
        self.reach.check("read", at, np.dtype(dtype).itemsize, mask)
        return self.accesses.load(at, mask, other, dtype)

    def store(self, at: Array, value: Array, mask: Array) -> Any:
        self.reach.check("write", at, value.dtype.itemsize, mask)
        return self.accesses.store(at, value, mask)

    def atomic_rmw(self, kind: Any, at: Array, value: Array, mask: Array, order: Any) -> Any:
        self.reach.check("read and write", at, value.dtype.itemsize, mask)
        return self.accesses.atomic_rmw(kind, at, value, mask, order)

    def atomic_cas(self, at: Array, expected: Array, value: Array, order: Any) -> Any:
        self.reach.check("read and write", at, value.dtype.itemsize)
        return self.accesses.atomic_cas(at, expected, value, order)


def _prefetch(text: str, constraints: str, inputs: Sequence[Any], **options: Any) -> None:
    """The one piece of assembly that kernels hold has no effect but on caches."""
    assert text.startswith("prefetch."), f"the interpreter does not run {text!r}"
    for item in inputs:
        _WATCHED[-1].check("prefetch", item.handle.data, 1)


@contextlib.contextmanager
def _interpreted_helpers() -> Iterator[None]:
    """Triton's jitted helpers replaced by interpreted ones, wherever its language names them."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    replaced: list[tuple[Any, str, Any]] = []

    def replace(place: Any, name: str, new: Any) -> None:
        replaced.append((place, name, vars(place)[name]))
        setattr(place, name, new)

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        """Triton's own turns arrays of one element into numbers in a way that NumPy ended."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    replace(interpreter, "_patch_lang_tensor", patch)
    for name in ("gdc_wait", "gdc_launch_dependents"):  # one launch at a time waits for nothing
        replace(tl.extra.cuda, name, lambda: None)
    replace(tl, "inline_asm_elementwise", _prefetch)
    # The language is patched once for a launch, not again by every function it calls.
    replace(
        InterpretedFunction,
        "__call__",
        lambda self, *positional, **named: self.rewrite()(*positional, **named),
    )
    made: dict[int, Any] = {}
    for place in (tl, tl.core, tl.standard, tl.math, tl.random):
        for name, value in list(vars(place).items()):
            if isinstance(value, JITFunction):
                new = made.setdefault(id(value), InterpretedFunction(value.fn))
                replace(place, name, new)
    try:
        yield
    finally:
        for place, name, value in reversed(replaced):
            setattr(place, name, value)
