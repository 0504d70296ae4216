"""Feature operators give the answers of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType
from tests.engine.ops.peer import agrees_with_peer, build, samples

TYPES = [np.float32, np.float64, np.int32, np.int64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_a_normalizer_agrees_with_onnx_runtime(norm: str, dtype: type) -> None:
    agrees_with_peer("Normalizer", [samples(6, 3, dtype)], [DType.FLOAT32], norm=norm)
    agrees_with_peer("Normalizer", [samples(1, 5, dtype)[0]], [DType.FLOAT32], norm=norm)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_a_row_of_zeros_stays_as_it_is(norm: str) -> None:
    assert build("Normalizer", norm=norm).meaning(np.zeros((2, 3))).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("values", [([2.0], [0.5]), ([2.0, -1.0, 4.0], [0.5, 1.0, -1.5])])
def test_a_scaler_agrees_with_onnx_runtime(
    values: tuple[list[float], list[float]], dtype: type
) -> None:
    scale, offset = values
    agrees_with_peer("Scaler", [samples(5, 3, dtype)], [DType.FLOAT32], scale=scale, offset=offset)


def test_missing_numbers_are_imputed_as_in_onnx_runtime() -> None:
    x = samples(6, 2)
    x[::2, 0] = np.nan
    nan = float("nan")
    for values in ([7.0], [7.0, 8.0]):
        agrees_with_peer(
            "Imputer",
            [x],
            [DType.FLOAT32],
            imputed_value_floats=values,
            replaced_value_float=nan,
        )


def test_integers_are_imputed_as_in_onnx_runtime() -> None:
    agrees_with_peer(
        "Imputer",
        [samples(8, 3, np.int64)],
        [DType.INT64],
        imputed_value_int64s=[10, 20, 30],
        replaced_value_int64=2,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_features_side_by_side_agree_with_onnx_runtime(dtype: type) -> None:
    parts = [samples(4, 3, dtype), samples(4, 1, dtype, seed=1)]
    agrees_with_peer("FeatureVectorizer", parts, [DType.FLOAT32], inputdimensions=[2, 3])
    agrees_with_peer(
        "FeatureVectorizer", [part[0] for part in parts], [DType.FLOAT32], inputdimensions=[3, 1]
    )


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_chosen_columns_agree_with_onnx_runtime(shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    agrees_with_peer("ArrayFeatureExtractor", [x, np.array([[4, 0, 4]])], [DType.FLOAT32])


def test_columns_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="columns"):
        build("ArrayFeatureExtractor").meaning(np.zeros((2, 3)), np.array([3]))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_binarizer_is_one_above_the_threshold(dtype: type) -> None:
    x = samples(6, 3, dtype)
    found = build("Binarizer", threshold=0.5).meaning(x)
    assert found.dtype == dtype
    assert (found == (x > 0.5)).all()
