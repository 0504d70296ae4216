"""Windows that slide over the spatial axes: the geometry of convolutions and poolings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from engine.ir.sizes import Dim, ceildiv, floordiv, minimum
from engine.ir.types import Array, Shape

__all__ = ["AUTO_PADS", "Windows", "filled"]

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")

Ints = tuple[int, ...]


def filled(values: Sequence[int] | None, count: int, default: int, *, name: str) -> Ints:
    """An attribute with one number per spatial axis; ValueError when the count is another."""
    if not values:
        return (default,) * count
    if len(values) != count:
        raise ValueError(f"{name} is {list(values)}, expected {count} numbers")
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of ``kernel`` elements, ``dilations`` apart, one every ``strides`` elements.

    ``pads`` holds what is added before each axis, then what is added after each.
    """

    kernel: Ints
    strides: Ints
    dilations: Ints
    pads: Ints
    auto_pad: str = "NOTSET"
    ceil: bool = False

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        auto_pad: str = "NOTSET",
        ceil: int = 0,
    ) -> Windows:
        """Windows from an operator's attributes; ValueError for ones that mean nothing."""
        rank = len(kernel)
        auto_pad = auto_pad or "NOTSET"
        windows = cls(
            kernel=tuple(kernel),
            strides=filled(strides, rank, 1, name="strides"),
            dilations=filled(dilations, rank, 1, name="dilations"),
            pads=filled(pads, 2 * rank, 0, name="pads"),
            auto_pad=auto_pad,
            ceil=bool(ceil),
        )
        for name in ("kernel", "strides", "dilations"):
            if any(item < 1 for item in getattr(windows, name)):
                raise ValueError(f"{name} is {getattr(windows, name)}, expected numbers from 1 on")
        if any(item < 0 for item in windows.pads):
            raise ValueError(f"pads is {windows.pads}, expected numbers from 0 on")
        if auto_pad not in AUTO_PADS:
            raise ValueError(f"auto_pad is {auto_pad!r}, expected one of {', '.join(AUTO_PADS)}")
        return windows

    @property
    def spans(self) -> Ints:
        """How far a window reaches on each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def output(self, sizes: Sequence[Dim]) -> Shape:
        """How many windows there are on each axis; ValueError when not one fits."""
        self._check_rank(sizes)
        rank = len(self.kernel)
        result: list[Dim] = []
        for axis, (size, span, stride) in enumerate(
            zip(sizes, self.spans, self.strides, strict=True)
        ):
            before, after = self.pads[axis], self.pads[rank + axis]
            if self.auto_pad.startswith("SAME"):
                count = floordiv(size - 1, stride) + 1
            elif self.auto_pad == "VALID":
                count = floordiv(size - span, stride) + 1
            elif self.ceil:
                # A window that would begin in the padding behind the data is left out.
                fitting = ceildiv(size + before + after - span, stride) + 1
                count = minimum(fitting, ceildiv(size + before, stride))
            else:
                count = floordiv(size + before + after - span, stride) + 1
            if isinstance(count, int) and count < 1 and not (size == 0 and count == 0):
                raise ValueError(
                    f"a window of {span} elements does not fit into spatial axis {axis}, which "
                    f"has {size} elements and padding {before} and {after}"
                )
            result.append(count)
        return tuple(result)

    def padding(self, sizes: Sequence[int]) -> tuple[Ints, Ints]:
        """What is added before and after each axis of these sizes."""
        rank = len(self.kernel)
        if self.auto_pad == "NOTSET":
            return self.pads[:rank], self.pads[rank:]
        if self.auto_pad == "VALID":
            return (0,) * rank, (0,) * rank
        before, after = [], []
        for size, span, stride in zip(sizes, self.spans, self.strides, strict=True):
            total = max(-(-size // stride) * stride - stride + span - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if self.auto_pad == "SAME_UPPER" else large)
            after.append(large if self.auto_pad == "SAME_UPPER" else small)
        return tuple(before), tuple(after)

    def pad(self, array: Array, value: Any) -> tuple[Array, Ints]:
        """An array [..., *spatial] extended so that every window lies inside, and the counts."""
        rank = len(self.kernel)
        sizes = array.shape[array.ndim - rank :]
        counts = tuple(int(n) for n in self.output(sizes) if isinstance(n, int))
        before, _ = self.padding(sizes)
        widths = [(0, 0)] * (array.ndim - rank)
        for size, first, span, stride, count in zip(
            sizes, before, self.spans, self.strides, counts, strict=True
        ):
            widths.append((first, max((count - 1) * stride + span - size - first, 0)))
        if not any(any(pair) for pair in widths):
            return array, counts
        shape = [n + a + b for n, (a, b) in zip(array.shape, widths, strict=True)]
        padded = np.full(shape, value, array.dtype)
        inside = tuple(slice(a, a + n) for n, (a, _) in zip(array.shape, widths, strict=True))
        padded[inside] = array
        return padded, counts

    def offsets(self, counts: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """For each place in a window, in row-major order, the index that picks it everywhere.

        The index is for a padded array and begins with an ellipsis.
        """
        for place in product(*(range(k) for k in self.kernel)):
            yield (
                ...,
                *(
                    slice(p * d, p * d + (n - 1) * s + 1, s)
                    for p, d, n, s in zip(place, self.dilations, counts, self.strides, strict=True)
                ),
            )

    def view(self, padded: Array, counts: Sequence[int]) -> Array:
        """The windows of a padded array as a read-only view [..., *kernel, *counts]."""
        rank = len(self.kernel)
        lead, spatial = padded.shape[: padded.ndim - rank], padded.strides[padded.ndim - rank :]
        steps = [n * d for n, d in zip(spatial, self.dilations, strict=True)]
        steps += [n * s for n, s in zip(spatial, self.strides, strict=True)]
        return np.lib.stride_tricks.as_strided(
            padded,
            (*lead, *self.kernel, *counts),
            (*padded.strides[: len(lead)], *steps),
            writeable=False,
        )

    def _check_rank(self, sizes: Sequence[Dim]) -> None:
        if len(sizes) != len(self.kernel):
            raise ValueError(
                f"the kernel has {len(self.kernel)} axes, the input {len(sizes)} spatial ones"
            )
