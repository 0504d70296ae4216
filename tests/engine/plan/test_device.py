"""Device functions and steps: written, read back, and refused when they make no sense."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import PlanCorruptError
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.plan.accesses import touched_slots
from engine.plan.decoding import program_from_json
from engine.plan.device import (
    ClearStep,
    DeviceFunction,
    LaunchStep,
    LibraryStep,
    Null,
    Operand,
    Pointer,
    Scalar,
    TensorMap,
    TensorMapForm,
)
from engine.plan.encoding import program_to_json
from engine.plan.plan import Plan, open_plan
from engine.plan.report import plan_text
from engine.plan.structure import Layer, Program, Slot, Symbol, Weight

N = symbol("N")
HALF = DType.FLOAT16


def program() -> Program:
    """One launch of each parameter, one call of a library, one clear."""
    slots = (
        Slot(TensorType(HALF, (N, 64)), "input", "x"),
        Slot(TensorType(HALF, (N, 64)), "output", "y"),
        Slot(TensorType(HALF, (64, 64)), "weight", "w0"),
        Slot(TensorType(HALF, (N, 64)), "arena"),
        Slot(TensorType(DType.UINT8, (4096,)), "arena"),
        Slot(TensorType(DType.INT32, (8,)), "zeros"),
    )
    launch = LaunchStep(
        0,
        ((N + 15) // 16, 1, 1),
        (
            TensorMap(0, 0, (N, 64), (64, 1), 0),
            Pointer(2),
            Pointer(3, 0, writes=True),
            Pointer(5, 0, writes=True),
            Scalar("i32", N),
            Scalar("f32", 0.125),
            Null(),
        ),
        0,
    )
    operands = (Operand(3), Operand(2), Operand(1, 0, writes=True))
    call = LibraryStep("cublaslt", {"version": 1, "tile": [1, 2]}, operands, (N, 64), 4, 1)
    return Program(
        symbols=(Symbol("N", 1, (8,), 32, ("input", "x", 0)),),
        slots=slots,
        inputs=(0,),
        outputs=(1,),
        kernels=(),
        steps=(ClearStep(3, 0), launch, call),
        layers=(Layer("a", "FusedMatMul"), Layer("b", "FusedMatMul")),
        weights=(Weight("w0", HALF, (64, 64), "w0"),),
        functions=(
            DeviceFunction(
                "image0", "gemm", 128, 4096, 1, (TensorMapForm("float16", (16, 64), 128),), True
            ),
        ),
    )


def test_a_program_survives_its_json() -> None:
    assert program_from_json(program_to_json(program())) == program()


def test_a_plan_file_holds_the_machine_code_and_shows_the_steps(tmp_path: Path) -> None:
    image = np.arange(1000, dtype=np.uint8)
    plan = Plan(program(), {"w0": np.ones((64, 64), np.float16)}, images={"image0": image})
    plan.save(tmp_path / "a.engine")
    opened = open_plan(tmp_path / "a.engine")
    assert opened.program == plan.program and opened.requires == ["cublaslt"]
    np.testing.assert_array_equal(opened.images["image0"], image)
    shown = plan_text(opened)
    assert "gemm.0(%0, %2, %3, %5) grid" in shown and "cublaslt(%3, %2, %1)" in shown


def test_a_step_touches_all_that_it_names() -> None:
    clear, launch, call = program().steps
    assert [touched_slots(step) for step in (clear, launch, call)] == [  # type: ignore[arg-type]
        [3],
        [0, 2, 3, 5],
        [3, 2, 1, 4],
    ]


def change(path: str, value: Any) -> Callable[[Any], None]:
    def apply(document: Any) -> None:
        *front, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in front:
            document = document[part]
        document[last] = value

    return apply


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (change("functions/0/threads", 2048), "threads"),
        (change("functions/0/maps/0", ["float16", [16, 64], 48]), "swizzle"),
        (change("functions/0/maps/0", ["float16", [16, 640], 128]), "640"),
        (change("functions/0/waits", 1), "true or false"),
        (change("steps/1/launch", 1), "no function 1"),
        (change("steps/1/grid", [1, 1]), "grid"),
        (change("steps/1/parameters/0/3", [["+", "N", 0]]), "sizes"),
        (change("steps/1/parameters/1", ["pointer", 77, 0, False]), "no slot 77"),
        (change("steps/1/parameters/1", ["pointer", 2, 0, True]), "may not be written"),
        (change("steps/1/parameters/1", ["pointer", 4, 0, False]), "read before"),
        (change("steps/1/parameters/4", ["i32", "M"]), "M"),
        (change("steps/1/parameters/4", ["i128", "N"]), "i128"),
        (change("steps/2/library", "cufft"), "cufft"),
        (change("steps/2/call", []), "dictionary"),
        (change("steps/0/clear", 2), "may not be written"),
        (change("slots/5/place", "one"), "one"),
    ],
)
def test_what_contradicts_itself_is_refused(wrong: Callable[[Any], None], said: str) -> None:
    document = copy.deepcopy(program_to_json(program()))
    wrong(document)
    with pytest.raises(PlanCorruptError, match=said):
        program_from_json(document)


def test_a_plan_without_its_machine_code_is_refused(tmp_path: Path) -> None:
    image = np.arange(10, dtype=np.uint8)
    weights = {"w0": np.ones((64, 64), np.float16)}
    plan = Plan(program(), weights, images={"image1": image})
    plan.save(tmp_path / "a.engine")
    with pytest.raises(PlanCorruptError, match="not the weights"):
        open_plan(tmp_path / "a.engine")


def test_a_program_for_a_processor_does_not_mention_functions() -> None:
    plain = dataclasses.replace(program(), functions=(), steps=(ClearStep(1, 0),))
    assert "functions" not in program_to_json(plain)
