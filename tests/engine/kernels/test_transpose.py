"""Transposition kernels against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.ir.sizes import evaluate, symbol
from engine.ir.types import DType
from engine.kernels.transpose import Transpose, kernel_of

SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = [DType.FLOAT32, DType.FLOAT64, DType.FLOAT16, DType.INT8]


@SETTINGS
@given(data=st.data())
def test_every_permutation_is_a_copy_or_what_numpy_gives(check: Any, data: st.DataObject) -> None:
    sizes = st.sampled_from([1, 2, 3, 7, 16, 19, 33, 70, 600])
    shape = data.draw(st.lists(sizes, min_size=1, max_size=3))
    permutation = data.draw(st.permutations(range(len(shape))))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = (np.arange(np.prod(shape)) % 120).astype(dtype.numpy).reshape(shape)
    expected = x.transpose(permutation)
    found = kernel_of(shape, permutation, dtype)
    if found is None:
        last = [axis for axis in permutation if shape[axis] != 1][-1:]
        assert not last or last[0] == max(a for a in range(len(shape)) if shape[a] != 1)
        return
    kernel, values = found
    y = check.agree(kernel, [x, np.zeros_like(x)], values)
    np.testing.assert_array_equal(y.reshape(expected.shape), expected)


def test_sizes_may_be_symbols(check: Any) -> None:
    n = symbol("n")
    found = kernel_of((n, 12, 20, 64), (0, 2, 1, 3))
    assert found is None
    found = kernel_of((n, 3, 20, 21), (0, 2, 3, 1))
    assert found is not None
    kernel, sizes = found
    x = np.arange(2 * 3 * 420, dtype=np.float32).reshape(2, 3, 420)
    y = check.agree(kernel, [x, np.zeros_like(x)], [evaluate(size, {"n": 2}) for size in sizes])
    np.testing.assert_array_equal(y.reshape(2, 420, 3), x.swapaxes(1, 2))


def test_a_kernel_comes_back_from_json() -> None:
    kernel = Transpose(2, DType.INT64)
    assert Transpose.from_json(kernel.to_json()) == kernel
    with pytest.raises(ValueError, match="dtype"):
        Transpose.from_json({"rank": 1, "dtype": "string"})
