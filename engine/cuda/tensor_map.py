"""Arguments of a tensor map: how the tensor memory accelerator finds boxes of a tensor.

The driver wants the innermost axis first, strides in bytes without that of the innermost axis, and
boxes in elements that are traversed, of which every ``step``-th is copied (CUDA driver API,
cuTensorMapEncodeTiled).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import PlanCorruptError
from engine.ir.types import DType
from engine.plan.device import TensorMapForm

__all__ = ["EncodedBox", "encode_box", "reach"]

MAX_AXES = 5
MAX_BOX = 256
MAX_SIZE = 1 << 32
MAX_STRIDE = 1 << 40
MAX_STEP = 8
ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class EncodedBox:
    """What the driver is asked for; axes run from the innermost outwards.

    ``dtype`` is that of the elements, ``address`` that of the first one, ``strides`` are in bytes
    and leave the innermost axis out, ``steps`` are in elements, ``swizzle`` is 0, 32, 64 or 128.
    """

    dtype: DType
    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    swizzle: int


def reach(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first one of a tensor to just after its last; 0 for an empty tensor."""
    if min(sizes, default=1) <= 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def encode_box(
    form: TensorMapForm,
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    steps: Sequence[int] = (),
) -> EncodedBox:
    """The driver's arguments for a tensor at a device address.

    ``sizes``, ``strides`` and ``steps`` are in elements, outermost axis first; no steps are steps
    of 1. ``form.box`` counts elements that are copied. Raises PlanCorruptError for what the
    hardware does not do: the message names the axis, counted from the outermost.
    """
    axes, dtype = len(form.box), DType(form.dtype)
    steps = tuple(steps) or (1,) * axes
    if not len(sizes) == len(strides) == len(steps) == axes or not 1 <= axes <= MAX_AXES:
        _refuse(f"it has {len(sizes)} sizes, {len(strides)} strides and {len(steps)} steps for a "
                f"box of {axes} axes")  # fmt: skip
    if address % ALIGNMENT:
        _refuse(f"its address is no multiple of {ALIGNMENT}")
    if strides[-1] != 1 or steps[-1] != 1:
        _refuse(f"its innermost axis has stride {strides[-1]} and step {steps[-1]}, not 1 and 1")
    traversed = tuple(size * step for size, step in zip(form.box, steps))
    for axis in range(axes):
        if not 1 <= sizes[axis] <= MAX_SIZE:
            _refuse(f"axis {axis} has {sizes[axis]} elements")
        if not 1 <= steps[axis] <= MAX_STEP or not 1 <= traversed[axis] <= MAX_BOX:
            _refuse(f"a box of axis {axis} spans {traversed[axis]} elements by {steps[axis]}")
    nbytes = tuple(stride * dtype.nbytes for stride in strides[:-1])
    for axis, stride in enumerate(nbytes):
        if stride % ALIGNMENT or not 0 < stride < MAX_STRIDE:
            _refuse(f"axis {axis} has a stride of {stride} bytes, no multiple of {ALIGNMENT}")
    inner = form.box[-1] * dtype.nbytes
    if inner % ALIGNMENT or (form.swizzle and inner > form.swizzle):
        _refuse(f"its boxes have rows of {inner} bytes under a swizzle of {form.swizzle}")
    return EncodedBox(
        dtype=dtype,
        address=address,
        sizes=tuple(reversed(sizes)),
        strides=tuple(reversed(nbytes)),
        box=tuple(reversed(traversed)),
        steps=tuple(reversed(steps)),
        swizzle=form.swizzle,
    )


def _refuse(reason: str) -> None:
    raise PlanCorruptError(f"a tensor map cannot be made: {reason}; build the model again")
