"""The parts of a program: symbols, slots, weights, steps, layers; plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.ir.sizes import Dim
from engine.ir.types import DType, Type
from engine.kernels.kernel import Kernel
from engine.plan.device import ClearStep, DeviceFunction, LaunchStep, LibraryStep
from engine.plan.recipes import RecipeStep

__all__ = [
    "ChooseStep",
    "FlatStep",
    "Guard",
    "HostFunction",
    "HostStep",
    "KernelStep",
    "Layer",
    "Place",
    "Program",
    "Relation",
    "Slot",
    "Source",
    "Step",
    "Symbol",
    "Weight",
]

Place = Literal["input", "output", "arena", "weight", "host", "zeros"]
Relation = Literal["<=", "==", "divides"]
HostFunction = Literal["meaning", "reference", "copy", "cupy"]
Source = tuple[Literal["input"], str, int] | tuple[Literal["data"]]


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named size.

    ``source`` is ``("input", input name, axis)`` for one read off the shape of an input, or
    ``("data",)`` for one that a host step declares. The greatest value of a data symbol, and of a
    symbol of a body, may be an expression over symbols listed before it, or None for no bound.
    """

    name: str
    least: int
    usual: tuple[int, ...]
    greatest: Dim | None
    source: Source


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a value lives; tensors are row-major and contiguous.

    ``input``, ``output``, ``weight``: a named buffer; ``arena``: memory of the context; ``host``: a
    value that Python owns (sequence, optional, strings, unknown size); ``zeros``: memory of the
    context that is zero whenever a step begins, counters that kernels leave at zero. With ``alias``
    the slot is a view of another slot, ``offset`` bytes into it; an output that aliases an input
    updates it in place, an arena slot may be a view of any tensor.
    """

    type: Type
    place: Place
    name: str = ""
    alias: int | None = None
    offset: Dim = 0


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant tensor: where it is stored and how to make it from the model's initialisers.

    ``tensor`` is its name in the container, ``sources`` are names of initialisers; an empty
    recipe means that the weight is the one source as it is, or a constant without sources.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    tensor: str
    sources: tuple[str, ...] = ()
    recipe: tuple[RecipeStep, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelStep:
    """One run of a compiled kernel: operands are (slot, offset in elements)."""

    kernel: int
    operands: tuple[tuple[int, Dim], ...]
    sizes: tuple[Dim, ...]
    layer: int


@dataclass(frozen=True, slots=True)
class HostStep:
    """One operator run in Python.

    ``function`` says how: by its ``meaning`` in NumPy, by the ``reference`` evaluator, as a plain
    ``copy``, or by its meaning on CuPy's arrays (``cupy``), for which the data stay on the device.
    ``operator`` is ``{"domain", "name", "since", "attributes"}``; for ``reference`` it is the
    engine's own operator Reference, which holds a serialised node; for ``copy`` it is empty.
    ``declares`` lists (symbol, output position, axis). ``bodies`` belong to control flow: the
    inputs of each are the operator's formal ones, then the captured values, as in
    `engine.ops.control`; every body takes the same captured values.
    """

    function: HostFunction
    operator: Mapping[str, Any]
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    declares: tuple[tuple[str, int, int], ...] = ()
    bodies: tuple[Program, ...] = ()
    layer: int = 0


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition over sizes; ``divides`` means that ``left`` divides ``right``."""

    relation: Relation
    left: Dim
    right: Dim


@dataclass(frozen=True, slots=True)
class ChooseStep:
    """Alternatives: the steps of the first case whose guards all hold; the last has no guard."""

    cases: tuple[tuple[tuple[Guard, ...], tuple[Step, ...]], ...]


FlatStep = KernelStep | HostStep | LaunchStep | LibraryStep | ClearStep
Step = FlatStep | ChooseStep


@dataclass(frozen=True, slots=True)
class Layer:
    """What a report says about some steps: original node names, tactic, choice, measured time."""

    name: str
    kind: str
    nodes: tuple[str, ...] = ()
    tactic: str = ""
    choice: Mapping[str, Any] = field(default_factory=dict)
    time_ns: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """Everything a context runs, over slots; inputs and outputs are indices of slots.

    Bodies of control flow are programs too: they have symbols, slots, kernels and layers of their
    own and no weights; their weight slots name weights of the outermost program. ``functions`` are
    those of a CUDA program, ``kernels`` those of a CPU program.
    """

    symbols: tuple[Symbol, ...]
    slots: tuple[Slot, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    layers: tuple[Layer, ...]
    weights: tuple[Weight, ...] = ()
    functions: tuple[DeviceFunction, ...] = ()
