import numpy as np
import pytest

from engine.kernels.packing import RECIPES, pack, packed_columns_size
from engine.kernels.transforms import TRANSFORMS


def test_columns_become_zero_padded_panels():
    matrix = np.arange(15, dtype=np.float32).reshape(3, 5)
    packed = pack("columns", matrix, [4]).reshape(2, 3, 4)
    np.testing.assert_array_equal(packed[0], matrix[:, :4])
    np.testing.assert_array_equal(packed[1], np.pad(matrix[:, 4:], ((0, 0), (0, 3))))
    assert packed.size == packed_columns_size(3, 5, 4)


def test_rows_are_the_columns_of_the_transpose():
    matrix = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    flipped = np.ascontiguousarray(matrix.transpose(0, 2, 1))
    np.testing.assert_array_equal(pack("rows", matrix, [16]), pack("columns", flipped, [16]))


@pytest.mark.parametrize("side", sorted(TRANSFORMS))
def test_the_transforms_compute_a_correlation(side):
    transform = TRANSFORMS[side]
    generator = np.random.default_rng(side)
    x, g = generator.standard_normal(side + 2), generator.standard_normal(3)
    found = transform.outputs @ ((transform.inputs @ x) * (transform.filters @ g))
    np.testing.assert_allclose(found, np.correlate(x, g, "valid"), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "arguments"),
    [
        ("nothing", (2, 2), [16]),
        ("columns", (2, 2), []),
        ("columns", (2, 2), [0]),
        ("filters", (4, 2, 3), [16, 1]),
        ("filters", (4, 2, 3, 3), [16, 3]),
        ("filters", (4, 2, 3, 3), [16, 0]),
        ("winograd", (4, 2, 5, 5), [16, 4, 1]),
        ("winograd", (4, 2, 3, 3), [16, 3, 1]),
        ("winograd", (4, 2, 3, 3), [16, 4, 3]),
    ],
)
def test_recipes_refuse_what_does_not_fit(name, shape, arguments):
    with pytest.raises(ValueError, match="found"):
        pack(name, np.zeros(shape, np.float32), arguments)
    assert sorted(RECIPES) == ["columns", "filters", "rows", "winograd"]
