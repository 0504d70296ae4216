"""What a CPU kernel is, and the registry that finds kernel kinds in this folder.

A kernel is a frozen value: compile-time parameters only (tile, dtype, epilogue, flags). Sizes and
strides, in elements, are run-time arguments, so one compiled function serves every layer that
shares them. Each kernel is written twice: as C text and as a NumPy twin.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.kernels.isa import Isa

__all__ = [
    "KERNELS",
    "Array",
    "Kernel",
    "take_boolean",
    "take_choice",
    "take_integer",
    "take_list",
    "refuse_others",
    "register",
]

Array = NDArray[Any]
LARGEST_SIZE = 1 << 48


class Kernel(ABC):
    """One way to compute something on a CPU, before its sizes are known."""

    kind: ClassVar[str]

    @abstractmethod
    def to_json(self) -> dict[str, object]:
        """Numbers, booleans, strings from closed sets and expressions, without the kind."""

    @classmethod
    @abstractmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check what `to_json` wrote; raises ValueError naming the field at fault."""

    @property
    @abstractmethod
    def operand_dtypes(self) -> tuple[str, ...]:
        """NumPy dtype names of the operands: inputs, weights, then outputs."""

    @property
    def operand_count(self) -> int:
        """How many pointers the kernel takes."""
        return len(self.operand_dtypes)

    @property
    def output_count(self) -> int:
        """How many of the last operands are written."""
        return 1

    @property
    @abstractmethod
    def size_names(self) -> tuple[str, ...]:
        """What the int64 sizes hold, in order."""

    @abstractmethod
    def items(self, sizes: Sequence[int]) -> int:
        """How many independent work items there are, to be split over threads."""

    @abstractmethod
    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Per operand, how many elements from its pointer the kernel may touch."""

    @abstractmethod
    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """Bytes of scratch memory per thread, aligned to 64."""

    @abstractmethod
    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Floating-point operations and bytes moved, for ranking."""

    @abstractmethod
    def source(self, name: str, isa: Isa) -> str:
        """A C file with one external function ``name``."""

    @abstractmethod
    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """The same in NumPy: operands are flat arrays that start at the operand's pointer."""

    def named(self, sizes: Sequence[int]) -> dict[str, int]:
        """The sizes by name; raises ValueError when one is missing, negative or absurd."""
        names = self.size_names
        if len(sizes) != len(names):
            raise ValueError(f"{self.kind}: found {len(sizes)} sizes, expected {len(names)}")
        for name, size in zip(names, sizes, strict=True):
            if not 0 <= size <= LARGEST_SIZE:
                raise ValueError(f"{self.kind}: size {name} is {size}, expected 0 to 2**48")
        return dict(zip(names, (int(size) for size in sizes), strict=True))


KernelType = TypeVar("KernelType", bound=type[Kernel])


class _Registry(Mapping[str, type[Kernel]]):
    """Kernel classes by kind; the modules of this folder are imported at the first look-up."""

    def __init__(self) -> None:
        self._kinds: dict[str, type[Kernel]] = {}
        self._discovered = False

    def add(self, kernel: type[Kernel]) -> None:
        known = self._kinds.setdefault(kernel.kind, kernel)
        if known is not kernel and known.__qualname__ != kernel.__qualname__:
            raise ValueError(f"two kernels are called {kernel.kind!r}: {known} and {kernel}")

    def _discover(self) -> dict[str, type[Kernel]]:
        if not self._discovered:
            package = importlib.import_module("engine.kernels")
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"engine.kernels.{module.name}")
            self._discovered = True
        return self._kinds

    def __getitem__(self, kind: str) -> type[Kernel]:
        return self._discover()[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._discover()))

    def __len__(self) -> int:
        return len(self._discover())


KERNELS = _Registry()


def register(kernel: KernelType) -> KernelType:
    """Class decorator: make a kernel known by its kind."""
    KERNELS.add(kernel)
    return kernel


def take_integer(fields: Mapping[str, object], name: str, least: int, most: int) -> int:
    """The integer field ``name`` between two bounds; raises ValueError naming it."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"field {name}: found {value!r}, expected an integer {least} to {most}")
    return value


def take_boolean(fields: Mapping[str, object], name: str) -> bool:
    """The boolean field ``name``; raises ValueError naming it."""
    value = fields.get(name)
    if not isinstance(value, bool):
        raise ValueError(f"field {name}: found {value!r}, expected true or false")
    return value


def take_choice(fields: Mapping[str, object], name: str, choices: Sequence[str]) -> str:
    """The string field ``name``, one of a closed set; raises ValueError naming it."""
    value = fields.get(name)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"field {name}: found {value!r}, expected one of {', '.join(choices)}")
    return value


def take_list(fields: Mapping[str, object], name: str, most: int) -> list[object]:
    """The list field ``name`` of at most ``most`` elements; raises ValueError naming it."""
    value = fields.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"field {name}: expected a list of at most {most} elements")
    return value


def refuse_others(fields: Mapping[str, object], known: Sequence[str]) -> None:
    """Raise ValueError naming the first field that nobody knows."""
    for name in fields:
        if name not in known:
            raise ValueError(f"field {name}: unknown, expected {', '.join(known)}")


def window(
    operand: Array, shape: Sequence[int], strides: Sequence[int], *, offset: int = 0
) -> Array:
    """A strided view (strides in elements) of a flat operand, checked against its length.

    A stride may be 0. Raises ValueError when the view would leave the operand.
    """
    reach = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) and reach > operand.size:
        raise ValueError(f"a view reaches element {reach} of an operand of {operand.size}")
    flat = operand[offset:]
    steps = [stride * operand.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps)
