"""ReverseSequence: the beginning of each sequence of a batch, backwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor

__all__ = ["ReverseSequence"]


@register("ReverseSequence", since=10)
@dataclass(frozen=True, slots=True)
class ReverseSequence(Operator):
    """The first ``lengths[i]`` steps of sample i reversed, the later ones as they are."""

    batch_axis: int = 1
    time_axis: int = 0

    def infer(self, data: Operand, lengths: Operand, /) -> list[TensorType]:
        """The type of the data."""
        given = tensor(data, "input")
        tensor(lengths, "sequence_lens")
        if {self.batch_axis, self.time_axis} != {0, 1}:
            raise ValueError(
                f"batch_axis {self.batch_axis}, time_axis {self.time_axis}: expected 0 and 1"
            )
        if given.shape is not None and len(given.shape) < 2:
            raise ValueError(f"the input has rank {len(given.shape)}, expected at least 2")
        return [given]

    def meaning(self, data: Array, lengths: Array, /) -> Array:
        """Indexing by [time, batch] with mirrored times."""
        batch_first = self.batch_axis == 0
        steps = np.arange(data.shape[self.time_axis])[:, None]
        ends = as_array(lengths, np.int64)[None, :]
        times = np.where(steps < ends, ends - 1 - steps, steps)
        samples = np.broadcast_to(np.arange(data.shape[self.batch_axis])[None, :], times.shape)
        if batch_first:
            return as_array(data[samples.T, times.T])
        return as_array(data[times, samples])
