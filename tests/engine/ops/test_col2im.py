"""Col2Im adds blocks up as onnxruntime does."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ops import find
from tests.engine.ops.single_node import assert_agree


@pytest.mark.parametrize(
    ("count", "attributes"),
    [
        (20, {}),
        (30, {"strides": [1, 1], "pads": [0, 1, 0, 1], "dilations": [1, 1]}),
        (6, {"strides": [2, 2]}),
        (9, {"dilations": [2, 2], "pads": [0, 0, 0, 0], "strides": [1, 1]}),
    ],
)
def test_images_agree_with_onnxruntime(count: int, attributes: dict[str, list[int]]) -> None:
    sizes = {20: (5, 6), 30: (6, 5), 6: (5, 6), 9: (5, 5)}[count]
    block = {20: (2, 2), 30: (2, 2), 6: (2, 2), 9: (2, 2)}[count]
    data = np.random.default_rng(0).normal(size=(2, 3 * 4, count)).astype(np.float32)
    assert_agree("Col2Im", [data, np.array(sizes), np.array(block)], 18, **attributes)


def test_a_wrong_number_of_blocks_is_refused() -> None:
    operator = find("", "Col2Im", 18)()
    with pytest.raises(ValueError, match="expected 4"):
        operator.meaning(np.zeros((1, 4, 3)), np.array([3, 3]), np.array([2, 2]))
