"""The build key changes with everything that decides what is built, and with nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import RequestError
from scheduler.keys import BuildSpec, ModelFile, normalise_options, parse_shape

SPEC = BuildSpec(
    files=(ModelFile("model.onnx", "1" * 64, 100), ModelFile("weights/a.bin", "2" * 64, 2000)),
    options=normalise_options(
        target="cpu", shapes={"x": "batch=1..8..32, 3, 224, width"}, tactics=["numpy", "c", "c"]
    ),
    target={"name": "cpu", "isa": "avx512", "threads": 2},
    toolchain={"cc": "gcc 12"},
    codegen=7,
)


def test_the_key_document_is_pinned() -> None:
    assert SPEC.to_json() == {
        "key_schema": 1,
        "codegen": 7,
        "model": {
            "files": [
                {"name": "model.onnx", "digest": "1" * 64, "size": 100},
                {"name": "weights/a.bin", "digest": "2" * 64, "size": 2000},
            ]
        },
        "options": {
            "target": "cpu",
            "precision": "fp32",
            "level": 3,
            "reference": True,
            "shapes": {"x": ["batch=1..8..32", 3, 224, "width"]},
            "tactics": ["c", "numpy"],
        },
        "target": {"name": "cpu", "isa": "avx512", "threads": 2},
        "toolchain": {"cc": "gcc 12"},
        "salt": "",
    }


def test_the_key_is_pinned() -> None:
    assert SPEC.key == "1088b1af15dc8772e99b85d7990f0ea83b35474af30b4c0e9ec1c2e251174b46"


@pytest.mark.parametrize(
    "changes",
    [
        {"files": (ModelFile("model.onnx", "3" * 64, 100), SPEC.files[1])},
        {"files": (SPEC.files[0], ModelFile("weights/b.bin", "2" * 64, 2000))},
        {"files": SPEC.files[:1]},
        {"options": {**SPEC.options, "level": 4}},
        {"options": {**SPEC.options, "lockfile": {}}},
        {"target": {**SPEC.target, "threads": 4}},
        {"toolchain": {"cc": "gcc 13"}},
        {"codegen": 8},
        {"salt": "again"},
        {"key_schema": 2},
    ],
)
def test_every_part_changes_the_key(changes: dict[str, object]) -> None:
    changed = replace(SPEC, **changes)  # type: ignore[arg-type]
    assert changed.key != SPEC.key
    assert (changed.context_digest == SPEC.context_digest) == ("files" in changes)


def test_the_order_of_files_does_not_change_the_key() -> None:
    assert replace(SPEC, files=SPEC.files[::-1]).key == SPEC.key


def test_a_spec_survives_being_written_down() -> None:
    assert BuildSpec.from_json(SPEC.to_json()) == SPEC


@given(least=st.integers(0, 50), more=st.integers(0, 50), most=st.integers(0, 50))
def test_a_shape_has_one_form_whatever_blanks_it_is_typed_with(
    least: int, more: int, most: int
) -> None:
    text = f"batch={least}..{least + more}..{least + more + most}"
    tight = parse_shape("x", f"{text},3")
    assert tight == parse_shape("x", f"  {text} , 3 ") == [text, 3]


@pytest.mark.parametrize(
    "text", ["batch=3..2", "a=1..5..4", "-1", "a=", "=1", "a b", "1..2", "a=1..2..3..4", "1,,2"]
)
def test_a_dimension_that_makes_no_sense_is_named(text: str) -> None:
    with pytest.raises(RequestError, match="shape of 'x'"):
        parse_shape("x", text)


def test_a_scalar_has_no_dimensions() -> None:
    assert parse_shape("x", "") == []


@pytest.mark.parametrize("wrong", [{"precision": "fp31"}, {"level": 6}, {"level": -1}])
def test_options_that_make_no_sense_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="expected"):
        normalise_options(target="cpu", **wrong)  # type: ignore[arg-type]


def test_declared_updates_enter_the_options_only_when_there_are_some() -> None:
    plain = normalise_options(target="cpu")
    assert normalise_options(target="cpu", updates={}) == plain
    some = normalise_options(target="cpu", updates={"present": "past", "a": "b"})
    assert list(some["updates"].items()) == [("a", "b"), ("present", "past")]
