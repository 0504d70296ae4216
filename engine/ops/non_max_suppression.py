"""NonMaxSuppression: the best boxes of each class that do not overlap better ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import minimum
from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import unknown

__all__ = ["NonMaxSuppression"]


@register("NonMaxSuppression", since=10)
@dataclass(frozen=True, slots=True)
class NonMaxSuppression(Operator):
    """Kept boxes as int64 [count, 3]: batch, class and box, best scores of a class first.

    Boxes [batch, box, 4] are (y1, x1, y2, x2) with corners in any order, or, when
    ``center_point_box`` is set, (x centre, y centre, width, height).
    """

    shape_inputs = (2,)
    center_point_box: int = 0

    def infer(
        self,
        boxes: Operand,
        scores: Operand,
        most: Operand | None = None,
        overlap: Operand | None = None,
        least_score: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """As many rows as classes times the greatest number per class at most."""
        tensor(boxes, "boxes")
        shape = tensor(scores, "scores").shape
        if shape is not None and len(shape) != 3:
            raise ValueError(f"scores have rank {len(shape)}, expected [batch, class, box]")
        if most is None:
            return [TensorType(DType.INT64, (0, 3))]
        bound = None
        if shape is not None:
            bound = shape[0] * shape[1] * shape[2]
            if most.sizes:
                bound = shape[0] * shape[1] * minimum(shape[2], most.sizes[0])
        return [TensorType(DType.INT64, (unknown(bound), 3))]

    def meaning(
        self,
        boxes: Array,
        scores: Array,
        most: Array | None = None,
        overlap: Array | None = None,
        least_score: Array | None = None,
        /,
    ) -> Array:
        """Greedy choice per batch and class, in float32."""
        limit = 0 if most is None else int(most.reshape(-1)[0])
        highest = np.float32(0 if overlap is None else overlap.reshape(-1)[0])
        lowest = None if least_score is None else np.float32(least_score.reshape(-1)[0])
        rows: list[tuple[int, int, int]] = []
        for batch in range(scores.shape[0]):
            corners = self._corners(boxes[batch].astype(np.float32))
            for label in range(scores.shape[1]):
                kept = _best(corners, scores[batch, label], limit, highest, lowest)
                rows.extend((batch, label, box) for box in kept)
        return np.array(rows, np.int64).reshape(-1, 3)

    def _corners(self, boxes: Array) -> Array:
        """Boxes [box, 4] as (low y, low x, high y, high x)."""
        if self.center_point_box:
            centre, half = boxes[:, [1, 0]], boxes[:, [3, 2]] / 2
            return np.concatenate([centre - half, centre + half], 1)
        first, second = boxes[:, :2], boxes[:, 2:]
        return np.concatenate([np.minimum(first, second), np.maximum(first, second)], 1)


def _best(
    corners: Array, scores: Array, limit: int, highest: np.float32, lowest: np.float32 | None
) -> list[int]:
    """The kept boxes of one class; of equal scores the first box is tried first."""
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    if lowest is not None:
        order = order[scores[order] > lowest]
    low_y, low_x, high_y, high_x = corners[order].T.copy()
    areas = (high_y - low_y) * (high_x - low_x)
    left = np.arange(len(order))
    kept: list[int] = []
    while left.size and len(kept) < limit:
        box, left = left[0], left[1:]
        kept.append(int(order[box]))
        height = np.minimum(high_y[box], high_y[left]) - np.maximum(low_y[box], low_y[left])
        width = np.minimum(high_x[box], high_x[left]) - np.maximum(low_x[box], low_x[left])
        inner = np.maximum(height, 0) * np.maximum(width, 0)
        union = areas[box] + areas[left] - inner
        # Two empty boxes have an empty union: they do not overlap.
        overlap = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
        left = left[overlap <= highest]
    return kept
