"""Encoders and map conversions give the answers of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType, MapType, Operand, TensorType
from tests.engine.ops.peer import agrees_with_peer, build

WORDS = np.array([["a", "z"], ["b", "a"]], object)
NUMBERS = np.array([[0, 1], [5, 0]])


def test_a_label_encoder_of_version_1_agrees_with_onnx_runtime() -> None:
    for x, kind in ((WORDS, DType.INT64), (NUMBERS, DType.STRING)):
        agrees_with_peer("LabelEncoder", [x], [kind], version=1, classes_strings=["a", "b"])


def test_a_category_mapper_agrees_with_onnx_runtime() -> None:
    for x, kind in ((WORDS, DType.INT64), (NUMBERS, DType.STRING)):
        agrees_with_peer("CategoryMapper", [x], [kind], cats_strings=["b", "a"], cats_int64s=[1, 5])


PAIRS = [(a, b) for a in ("floats", "int64s", "strings") for b in ("floats", "int64s", "strings")]


@pytest.mark.parametrize(("keys", "values"), [pair for pair in PAIRS if pair[0] != pair[1]])
def test_a_label_encoder_of_version_2_agrees_with_onnx_runtime(keys: str, values: str) -> None:
    table = {
        "floats": ([0.1, 5.0], np.array([0.1, 7], np.float32), DType.FLOAT32),
        "int64s": ([4, -5], np.array([[4], [6]]), DType.INT64),
        "strings": (["a", "c"], WORDS, DType.STRING),
    }
    attributes = {f"keys_{keys}": table[keys][0], f"values_{values}": table[values][0]}
    agrees_with_peer("LabelEncoder", [table[keys][1]], [table[values][2]], version=2, **attributes)


def test_a_key_that_is_no_number_is_found() -> None:
    encoder = build(
        "LabelEncoder", version=4, keys_floats=[float("nan"), 1.0], values_strings=["none", "one"]
    )
    x = np.array([1, np.nan, 2], np.float32)
    assert encoder.meaning(x).tolist() == ["one", "none", "_Unused"]


def test_one_hot_agrees_with_onnx_runtime() -> None:
    agrees_with_peer("OneHotEncoder", [WORDS], [DType.FLOAT32], cats_strings=["a", "b", "c"])
    for dtype in (np.float32, np.float64, np.int64):
        x = np.array([[1.0, 2.0], [7.0, 0.0]]).astype(dtype)
        agrees_with_peer("OneHotEncoder", [x], [DType.FLOAT32], cats_int64s=[2, 1, 0])


def test_one_hot_refuses_what_is_no_category_when_it_shall_not_give_zeros() -> None:
    encoder = build("OneHotEncoder", cats_int64s=[1, 2], zeros=0)
    with pytest.raises(ValueError, match="2 categories"):
        encoder.meaning(np.array([1, 3]))


@pytest.mark.parametrize("to", ["TO_FLOAT", "TO_STRING", "TO_INT64"])
@pytest.mark.parametrize("form", ["DENSE", "SPARSE"])
def test_a_map_becomes_the_tensor_of_onnx_runtime(to: str, form: str) -> None:
    kind = {"TO_FLOAT": DType.FLOAT32, "TO_STRING": DType.STRING, "TO_INT64": DType.INT64}[to]
    agrees_with_peer("CastMap", [{3: -2.5, 1: 1.75}], [kind], cast_to=to, map_form=form, max_map=5)


def test_strings_of_a_map_become_numbers() -> None:
    assert build("CastMap").meaning({2: "1.5", 1: "2"}).tolist() == [[2.0, 1.5]]
    assert build("CastMap", cast_to="TO_INT64").meaning({2: "7"}).tolist() == [[7]]


def test_a_sparse_map_refuses_keys_beyond_its_size() -> None:
    with pytest.raises(ValueError, match="key 5"):
        build("CastMap", map_form="SPARSE", max_map=5).meaning({5: 1.0})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"c": 2.5, "a": 1.0}, [1.0, 0.0, 2.5]),
        ({"b": 4}, [0, 4, 0]),
        ({"b": "x"}, ["", "x", ""]),
        ({"b": 1.0, "unheard": 3.0}, [0.0, 1.0, 0.0]),
    ],
)
def test_a_dictionary_becomes_a_vector_over_the_vocabulary(
    given: dict[str, object], expected: list[object]
) -> None:
    found = build("DictVectorizer", string_vocabulary=["a", "b", "c"]).meaning(given)
    assert found.tolist() == expected


def test_the_type_of_a_vectorised_dictionary_is_that_of_its_values() -> None:
    kind = MapType(DType.INT64, TensorType(DType.FLOAT64, ()))
    (answer,) = build("DictVectorizer", int64_vocabulary=[4, 2]).infer(Operand(kind))
    assert answer == TensorType(DType.FLOAT64, (2,))


@pytest.mark.parametrize(
    "labels", [{"classlabels_strings": ["a", "b"]}, {"classlabels_int64s": [4, 2]}]
)
def test_rows_become_maps_as_in_onnx_runtime(labels: dict[str, list[object]]) -> None:
    x = np.array([[0.5, 1], [2, 3], [4, 5]], np.float32)
    agrees_with_peer("ZipMap", [x], [None], **labels)
