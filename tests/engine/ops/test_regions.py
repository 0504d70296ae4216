"""Region poolings agree with a peer; whole regions give whole-image answers."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ops.regions import MaxRoiPool, RoiAlign
from tests.engine.ops.single_node import ours, theirs

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 8, 9)).astype(np.float32)
BOXES = np.array(
    [[0, 0, 7, 7], [1.5, 2, 5, 6.2], [-3, -1, 20, 9], [3, 3, 3, 3], [30, 30, 40, 40]], np.float32
)


@pytest.mark.parametrize("version", [10, 16])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("samples", [0, 2])
def test_aligned_regions_agree_with_a_peer(version: int, mode: str, samples: int) -> None:
    inputs = [X, BOXES, np.array([0, 1, 0, 1, 0])]
    attributes = {
        "mode": mode,
        "output_height": 3,
        "output_width": 2,
        "sampling_ratio": samples,
        "spatial_scale": 0.9,
    }
    (found,) = ours("RoiAlign", inputs, version, **attributes)
    (expected,) = theirs("RoiAlign", inputs, version, **attributes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_whole_regions_agree_with_a_peer() -> None:
    images = np.array([[0], [1], [0], [1], [0]], np.float32)
    inputs = [X, np.concatenate([images, np.maximum(BOXES, 0)], axis=1)]
    attributes = {"pooled_shape": (3, 2), "spatial_scale": 0.9}
    (found,) = ours("MaxRoiPool", inputs, 1, **attributes)
    (expected,) = theirs("MaxRoiPool", inputs, 1, **attributes)
    np.testing.assert_array_equal(found, expected)


def test_a_region_over_everything_has_the_maximum_of_the_image() -> None:
    box = np.array([[1, 0, 0, 8, 7]], np.float32)
    found = MaxRoiPool(pooled_shape=(1, 1)).meaning(X, box)
    np.testing.assert_array_equal(found[0, :, 0, 0], X[1].max(axis=(1, 2)))


def test_a_constant_image_has_constant_regions() -> None:
    box = np.array([[1, 1, 6, 5]], np.float32)
    operator = RoiAlign(output_height=2, output_width=3)
    found = operator.meaning(np.full((1, 1, 8, 8), 2.5), box, np.array([0]))
    np.testing.assert_allclose(found, np.full((1, 1, 2, 3), 2.5))


def test_no_regions_give_no_output() -> None:
    boxes, images = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    assert RoiAlign().meaning(X, boxes, images).shape == (0, 3, 1, 1)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="coordinate_transformation_mode"):
        RoiAlign(coordinate_transformation_mode="x").meaning(X, BOXES, np.zeros(5, np.int64))
