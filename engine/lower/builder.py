"""Building a program: slots for values, weights with recipes, kernels named once, steps, layers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engine.cuda.kernel import DeviceKernel
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim, symbols
from engine.ir.types import (
    DType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownSize,
    is_bound,
)
from engine.kernels.kernel import Kernel
from engine.lower.placement import Placement
from engine.plan.device import DeviceFunction, LaunchStep, LibraryStep, Operand, Parameter
from engine.plan.operators import operator_to_json
from engine.plan.recipes import RecipeStep
from engine.plan.structure import HostStep, KernelStep, Layer, Program, Slot, Step, Symbol, Weight

__all__ = ["PackedWeight", "ProgramBuilder", "stored_type"]


def stored_type(kind: Type, known: frozenset[str] | None = None) -> Type:
    """The type as a plan writes it: sizes that only a run tells are marked unknown.

    With ``known``, so are sizes that depend on other symbols: a body has no names for the sizes of
    what surrounds it.
    """
    if isinstance(kind, TensorType) and kind.shape is not None:
        return TensorType(
            kind.dtype,
            tuple(
                UnknownSize()  # type: ignore[misc]
                if any(n.startswith("?") for n in symbols(dim))
                or (known is not None and not symbols(dim) <= known)
                else dim
                for dim in kind.shape
            ),
        )
    if isinstance(kind, SequenceType):
        return SequenceType(stored_type(kind.element, known))
    if isinstance(kind, OptionalType):
        return OptionalType(stored_type(kind.element, known))
    return kind


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """How the bytes of a weight come about: the model's arrays and the recipe over them."""

    sources: tuple[Value, ...]
    recipe: tuple[RecipeStep, ...]


@dataclass(slots=True)
class ProgramBuilder:
    """Collects the parts of a program; `build` freezes them."""

    graph: Graph
    symbols: Sequence[Symbol] = ()
    #: The builder of the outermost program, which owns all weights.
    top: ProgramBuilder | None = None
    slots: list[Slot] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    packed: dict[str, PackedWeight] = field(default_factory=dict)
    #: Values that lie in slices of others, by identity.
    placed: Mapping[int, Placement] = field(default_factory=dict)
    #: Kernels for a GPU in the order of their first launch; launches number them.
    device_kernels: list[DeviceKernel] = field(default_factory=list)
    #: Numbers of the kernels launched since somebody emptied this set.
    launched: set[int] = field(default_factory=set)
    _slot_of: dict[int, int] = field(default_factory=dict)
    _kernel_of: dict[str, int] = field(default_factory=dict)
    _device_kernel_of: dict[str, int] = field(default_factory=dict)
    _weight_of: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _renamed: dict[str, Dim] = field(default_factory=dict)

    def same_place(self, value: Value, other: Value) -> None:
        """Say that another value, the same tensor at fixed sizes, lies where a value does."""
        if id(value) in self.placed:
            raise ValueError(f"%{value.name} lies in a slice, where no layer of fixed sizes reads")
        self._slot_of[id(other)] = self.slot(value)

    def root(self, slot: int) -> int:
        """The slot whose memory, from its beginning, a slot is."""
        while (alias := self.slots[slot].alias) is not None and self.slots[slot].offset == 0:
            slot = alias
        return slot

    @contextlib.contextmanager
    def branch(self) -> Iterator[list[Step]]:
        """Steps written meanwhile go into a list of their own."""
        outer, self.steps = self.steps, []
        try:
            yield self.steps
        finally:
            self.steps = outer

    def add_slot(self, slot: Slot) -> int:
        """A new slot."""
        self.slots.append(slot)
        return len(self.slots) - 1

    def set_slot(self, value: Value, slot: int) -> None:
        """Say where a value lives."""
        self._slot_of[id(value)] = slot

    def location(self, value: Value) -> tuple[int, Dim, Dim]:
        """Where a tensor lies: slot, offset in elements, elements between pixels (last axis)."""
        placement = self.placed.get(id(value))
        if placement is None:
            return self.slot(value), 0, value.tensor.dims[-1] if value.tensor.rank else 1
        return self.slot(placement.root), placement.offset, placement.pixel

    def has_slot(self, value: Value) -> bool:
        """Whether a value has its place already."""
        return id(value) in self._slot_of

    def slot(self, value: Value) -> int:
        """Where a value lives; a constant becomes a weight, a result gets memory."""
        assert id(value) not in self.placed, f"%{value.name} lies in a slice"
        found = self._slot_of.get(id(value))
        if found is None:
            if value.constant is not None:
                found = self.weight(value)
            else:
                kind = stored_type(value.type)
                in_memory = self.top is None and is_bound(value.type) and not _is_string(kind)
                found = self.add_slot(Slot(kind, "arena" if in_memory else "host"))
            self._slot_of[id(value)] = found
        return found

    def weight(
        self,
        value: Value,
        recipe: Sequence[RecipeStep] = (),
        kind: TensorType | None = None,
        *,
        others: Sequence[Value] = (),
    ) -> int:
        """A slot for a constant, or for what ``recipe`` makes of it (of type ``kind``).

        Recipe steps number their inputs: ``value`` is 0, then ``others``, then step results.
        """
        owner = self.top or self
        kind = kind or value.tensor
        sources = (value, *others)
        key = (
            tuple(id(source.constant) for source in sources),
            json.dumps([[s.function, s.inputs, dict(s.arguments)] for s in recipe], sort_keys=True),
        )
        name = owner._weight_of.get(key)
        if name is None:
            name = owner._new_weight(sources, tuple(recipe), kind)
            owner._weight_of[key] = name
        slot = next(
            (i for i, s in enumerate(self.slots) if s.place == "weight" and s.name == name), -1
        )
        return slot if slot >= 0 else self.add_slot(Slot(kind, "weight", name))

    def _new_weight(
        self, sources: tuple[Value, ...], recipe: tuple[RecipeStep, ...], kind: TensorType
    ) -> str:
        name = f"w{len(self.weights)}"
        origins = tuple(source.origin for source in sources)
        known = all(origin is not None for origin in origins)
        shape = tuple(int(dim) for dim in kind.dims)  # type: ignore[arg-type]
        self.weights.append(
            Weight(
                name,
                kind.dtype,
                shape,
                name,
                tuple(str(origin) for origin in origins) if known else (),
                recipe if known else (),
            )
        )
        self.packed[name] = PackedWeight(sources, recipe)
        return name

    def workspace(self, dtype: DType, elements: Dim) -> int:
        """Memory that only the steps of one layer touch."""
        return self.add_slot(Slot(TensorType(dtype, (elements,)), "arena"))

    def layer(self, node: Node, tactic: str, choice: Mapping[str, Any], time_ns: int = 0) -> int:
        """A line of the report; returns its index, which steps carry."""
        self.layers.append(
            Layer(node.name, node.op.name, node.sources, tactic, dict(choice), int(time_ns))
        )
        return len(self.layers) - 1

    def kernel(
        self,
        kernel: Kernel,
        operands: Sequence[tuple[int, Dim]],
        sizes: Sequence[Dim],
        layer: int,
    ) -> None:
        """A step that runs a kernel; operands are (slot, offset in elements)."""
        key = json.dumps({"kind": kernel.kind, **kernel.to_json()}, sort_keys=True)
        index = self._kernel_of.get(key)
        if index is None:
            index = self._kernel_of[key] = len(self.kernels)
            self.kernels.append(kernel)
        self.steps.append(KernelStep(index, tuple(operands), tuple(sizes), layer))

    def launch(
        self,
        kernel: DeviceKernel,
        grid: Sequence[Dim],
        parameters: Sequence[Parameter],
        layer: int,
    ) -> None:
        """A step that launches a device kernel; a short grid is filled with 1."""
        index = self._device_kernel_of.get(kernel.digest)
        if index is None:
            index = self._device_kernel_of[kernel.digest] = len(self.device_kernels)
            self.device_kernels.append(kernel)
        self.launched.add(index)
        x, y, z = (*grid, 1, 1)[:3]
        self.steps.append(LaunchStep(index, (x, y, z), tuple(parameters), layer))

    def library(
        self,
        library: Literal["cublaslt", "cudnn"],
        call: Mapping[str, Any],
        operands: Sequence[Operand],
        sizes: Sequence[Dim],
        *,
        workspace_nbytes: Dim,
        layer: int,
    ) -> None:
        """A step that calls a vendor's library; its workspace lies in the arena."""
        workspace = self.workspace(DType.UINT8, workspace_nbytes) if workspace_nbytes != 0 else None
        self.steps.append(
            LibraryStep(library, call, tuple(operands), tuple(sizes), workspace, layer)
        )

    def zeros(self, elements: int) -> int:
        """A slot of 32-bit counters, zero when a step begins and left at zero by it."""
        return self.add_slot(Slot(TensorType(DType.INT32, (elements,)), "zeros"))

    def host(self, step: HostStep) -> None:
        """A step that runs in Python."""
        self.steps.append(step)

    def meaning(self, node: Node, layer: int) -> None:
        """A step that runs a node without bodies by its meaning."""
        inputs = tuple(None if value is None else self.slot(value) for value in node.inputs)
        outputs = tuple(self.slot(value) for value in node.outputs)
        self.host(HostStep("meaning", operator_to_json(node.op), inputs, outputs, layer=layer))

    def build(self, functions: Sequence[DeviceFunction] = ()) -> Program:
        """The program; slots that nothing touches are kept, they cost nothing.

        ``functions`` are the compiled `device_kernels`, in their order.
        """
        inputs = tuple(self._slot_of[id(value)] for value in self.graph.inputs)
        outputs = tuple(i for i, slot in enumerate(self.slots) if slot.place == "output")
        known = frozenset(item.name for item in self.symbols)
        return Program(
            symbols=tuple(self.symbols),
            slots=tuple(
                slot
                if slot.place in ("arena", "zeros")
                else replace(slot, type=stored_type(slot.type, known))
                for slot in self.slots
            ),
            inputs=inputs,
            outputs=outputs,
            kernels=tuple(self.kernels),
            steps=tuple(self.steps),
            layers=tuple(self.layers),
            weights=tuple(self.weights),
            functions=tuple(functions),
        )


def _is_string(kind: Type) -> bool:
    return isinstance(kind, TensorType) and kind.dtype is DType.STRING
