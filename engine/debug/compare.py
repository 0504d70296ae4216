"""Comparing what an engine computes with what its model means."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, DType, TensorType
from engine.runtime.interface import ProgramInterface

__all__ = ["Difference", "difference", "error", "over_samples", "sample_feeds"]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one output is from what is expected.

    ``error`` is the largest absolute difference in units of the expected output's spread (its
    standard deviation); infinite where shapes, dtypes or not-a-numbers disagree.
    """

    name: str
    error: float
    largest: float
    spread: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON."""
        return {
            "name": self.name,
            "error": self.error,
            "largest": self.largest,
            "spread": self.spread,
            "note": self.note,
        }


def difference(name: str, found: Any, expected: Any) -> Difference:
    """Compare two values: tensors by numbers, everything else by equality."""
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(found) != len(expected):
            return Difference(name, float("inf"), 0.0, 0.0, "another number of elements")
        worst = [difference(name, a, b) for a, b in zip(found, expected)]
        return max(worst, key=lambda item: item.error, default=Difference(name, 0.0, 0.0, 0.0))
    if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
        return Difference(name, 0.0 if found == expected else float("inf"), 0.0, 0.0)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        note = f"{found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}"
        return Difference(name, float("inf"), 0.0, 0.0, note)
    if expected.dtype.kind in "OUSb" or expected.size == 0:
        same = bool(np.all(found == expected))
        return Difference(name, 0.0 if same else float("inf"), 0.0, 0.0)
    return _numeric(name, found, expected)


def _numeric(name: str, found: Array, expected: Array) -> Difference:
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = found.astype(kind), expected.astype(kind)
    finite = np.isfinite(b)
    if not np.array_equal(np.isnan(a), np.isnan(b)) or not np.array_equal(
        a[~finite & ~np.isnan(b)], b[~finite & ~np.isnan(b)]
    ):
        return Difference(name, float("inf"), 0.0, 0.0, "infinities or not-a-numbers disagree")
    if not finite.any():
        return Difference(name, 0.0, 0.0, 0.0)
    largest = float(np.abs(a[finite] - b[finite]).max())
    spread = float(np.std(b[finite]))
    scale = spread if spread > 0 else max(float(np.abs(b[finite]).max()), 1.0)
    return Difference(name, largest / scale, largest, spread)


def error(got: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The largest absolute error of one output, in units of its spread between inputs.

    Both hold one array for each of several inputs, at least two. The spread is the standard
    deviation between inputs of the element that varies most: an answer that ignores its input errs
    by one or more, however close the outputs lie to each other. Infinite for an output that does
    not vary, for other shapes, and for values that are not finite.
    """
    if len(wanted) < 2 or len({array.shape for array in wanted}) > 1:
        return float("inf")
    if [array.shape for array in got] != [array.shape for array in wanted]:
        return float("inf")
    truth = np.stack([np.asarray(array, np.float64) for array in wanted])
    answer = np.stack([np.asarray(array, np.float64) for array in got])
    spread = float(truth.std(axis=0).max()) if truth.size else 0.0
    if spread == 0 or not np.isfinite(spread) or not np.isfinite(answer).all():
        return float("inf")
    return float(np.abs(answer - truth).max()) / spread


def over_samples(name: str, found: Sequence[Any], expected: Sequence[Any]) -> Difference:
    """Compare one output over several inputs, in units of its spread between them.

    Where that spread means nothing (one sample, an output that does not vary or whose shape does,
    values that are no finite real numbers), the worst `difference` of a single sample counts.
    """
    worst = max(
        (difference(name, a, b) for a, b in zip(found, expected, strict=True)),
        key=lambda item: item.error,
    )
    floats = all(isinstance(b, np.ndarray) and DType.of(b.dtype).is_float for b in expected)
    if not floats or worst.error == float("inf"):
        return worst
    off = error(found, expected)
    if off == float("inf"):
        return worst
    return Difference(name, off, worst.largest, worst.largest / off if off else worst.spread)


def sample_feeds(
    engine: ProgramInterface,
    seed: int = 0,
    *,
    sizes: Mapping[str, int] | None = None,
    without: Collection[str] = (),
) -> dict[str, Array]:
    """Random inputs at the sizes for which an engine is tuned; integers are 0 or 1.

    ``sizes`` gives some symbolic sizes other values, ``without`` names inputs to leave out.
    ValueError for an input without random values.
    """
    from engine.ir.sizes import evaluate

    generator = np.random.default_rng(seed)
    point = {item.name: item.usual[0] for item in engine.program.symbols}
    point.update(sizes or {})
    feeds = {}
    for port in engine.inputs:
        kind = port.type
        if port.name in without:
            continue
        if not isinstance(kind, TensorType) or kind.shape is None:
            raise ValueError(f"there are no random values for input {port}")
        shape = [evaluate(dim, point) for dim in kind.shape]
        feeds[port.name] = random_values(generator, kind.dtype, shape)
    return feeds


def random_values(generator: np.random.Generator, dtype: DType, shape: Sequence[int]) -> Array:
    """Standard normal floats, 0 or 1 for integers and booleans, one letter for strings.

    Images (rank 4 and more) have the same power at several scales, as photographs have about:
    pooling would average white noise away, and all outputs would look alike.
    """
    if dtype is DType.STRING:
        return np.full(shape, "a", object)
    if not (dtype.is_float or dtype.is_complex):
        return np.asarray(generator.integers(0, 2, shape)).astype(dtype.numpy)
    noise = generator.standard_normal(shape)
    if len(shape) < 4:
        return np.asarray(noise).astype(dtype.numpy)
    *outer, height, width = shape
    scales = [size for size in (1, 4, 16) if size < max(height, width)]
    for size in scales:
        coarse = generator.standard_normal((*outer, size, size))
        rows, columns = (np.arange(n) * size // max(n, 1) for n in (height, width))
        noise += coarse[..., rows[:, None], columns]
    return np.asarray(noise / np.sqrt(1 + len(scales))).astype(dtype.numpy)
