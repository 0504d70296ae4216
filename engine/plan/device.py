"""What a CUDA program is made of beside host steps: compiled functions and steps that call them.

A function is one entry of a cubin, which the plan file holds as a tensor. A launch gives it a grid
and typed parameters in the order of its own parameter list; whatever depends on a shape is a size
expression, so that one plan serves its whole profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.ir.sizes import Dim

__all__ = [
    "LANES",
    "ClearStep",
    "DeviceFunction",
    "LaunchStep",
    "LibraryStep",
    "Null",
    "Operand",
    "Parameter",
    "Pointer",
    "Scalar",
    "ScalarKind",
    "TensorMap",
    "TensorMapForm",
]

#: How many streams a context may use at once: lane 0 is its own one, the others are auxiliary.
LANES = 4
ScalarKind = Literal["i32", "i64", "f32"]


@dataclass(frozen=True, slots=True)
class TensorMapForm:
    """How a compiled function reads a tensor map: element type, box in elements, swizzle in bytes.

    ``box`` lists the outermost axis first; ``swizzle`` is 0, 32, 64 or 128.
    """

    dtype: str
    box: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True, slots=True)
class DeviceFunction:
    """One entry of a cubin and how it is launched.

    ``tensor`` names the container's tensor with the cubin; ``shared_nbytes`` is dynamic shared
    memory; ``waits`` says that every thread waits for the kernels before it (programmatic dependent
    launch) before it touches memory that they may write, so that it may be launched early.
    """

    tensor: str
    entry: str
    threads: int
    shared_nbytes: int = 0
    cluster: int = 1
    maps: tuple[TensorMapForm, ...] = ()
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Pointer:
    """An address: ``offset`` elements into a slot."""

    slot: int
    offset: Dim = 0
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number passed by value; a size expression, or a plain float for "f32"."""

    kind: ScalarKind
    value: Dim | float


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A tensor map over a part of a slot, 128 bytes passed by value.

    ``sizes`` and ``strides`` are in elements, outermost axis first; the last stride is 1.
    ``steps`` are the strides of traversal in elements of each axis (convolutions with a stride).
    ``form`` is the index into the function's ``maps``.
    """

    slot: int
    offset: Dim
    sizes: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    form: int
    steps: tuple[int, ...] = ()
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Null:
    """A null pointer, for parameters that a compiler adds and no kernel of ours reads."""


Parameter = Pointer | Scalar | TensorMap | Null


@dataclass(frozen=True, slots=True)
class LaunchStep:
    """One launch of a function; ``grid`` is in blocks, ``lane`` as in `engine.plan.lanes`."""

    function: int
    grid: tuple[Dim, Dim, Dim]
    parameters: tuple[Parameter, ...]
    layer: int
    lane: int = 0


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a library reads or writes: ``offset`` elements into a slot."""

    slot: int
    offset: Dim = 0
    writes: bool = False


@dataclass(frozen=True, slots=True)
class LibraryStep:
    """One call of a vendor's library, described in the library's own words.

    ``call`` is JSON that the library's module under `engine.cuda` reads and checks; ``operands``
    and ``sizes`` come in the order that it fixes. ``workspace`` is a slot of bytes, or None.
    """

    library: Literal["cublaslt", "cudnn"]
    call: Mapping[str, Any]
    operands: tuple[Operand, ...]
    sizes: tuple[Dim, ...]
    workspace: int | None
    layer: int
    lane: int = 0


@dataclass(frozen=True, slots=True)
class ClearStep:
    """Sets a whole slot to zero bytes."""

    slot: int
    layer: int
    lane: int = 0
