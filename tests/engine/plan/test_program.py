from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import PlanCorruptError
from engine.ir.sizes import symbol
from engine.plan.program import (
    Program,
    check_program,
    choose,
    is_fixed,
    program_from_json,
    program_to_json,
    root_of,
)


def document(program: Program) -> Any:
    return json.loads(json.dumps(program_to_json(program)))


def test_a_program_survives_json(sample: Program) -> None:
    check_program(sample)
    assert program_from_json(document(sample)) == sample


def test_the_same_program_gives_the_same_json(sample: Program) -> None:
    once = json.dumps(program_to_json(sample), sort_keys=True)
    again = program_from_json(json.loads(once))
    assert json.dumps(program_to_json(again), sort_keys=True) == once


def test_the_first_case_whose_guards_hold_is_chosen(sample: Program) -> None:
    step = sample.steps[1]
    assert choose(step, {"n": 16})[0].kernel == 1
    assert choose(step, {"n": 15})[0].kernel == 0


def test_views_are_followed_to_their_root(sample: Program) -> None:
    assert root_of(sample, 3) == 2
    assert [is_fixed(slot) for slot in sample.slots] == [True] * 5 + [False] * 3


def edit(*path: Any) -> Callable[[Any], None]:
    """Set the value at a path (its last element) in a document."""
    *steps, last, value = path

    def apply(found: Any) -> None:
        for step in steps:
            found = found[step]
        if value is KeyError:
            del found[last]
        else:
            found[last] = value

    return apply


DEEP: Any = "n"
for _ in range(500):
    DEEP = ["+", DEEP, 1]
WIDE: Any = ["+", "n", 1]
for _ in range(6):
    WIDE = ["*", ["+", WIDE, "found"], ["+", WIDE, 1]]

REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "missing field": (edit("layers", KeyError), "'layers' is missing"),
    "unknown field": (edit("more", 1), "unknown"),
    "kernel out of range": (edit("steps", 0, "kernel", 2), "no kernel 2"),
    "negative kernel": (edit("steps", 0, "kernel", -1), "expected an integer"),
    "boolean for an index": (edit("steps", 0, "kernel", True), "expected an integer"),
    "slot out of range": (edit("steps", 0, "operands", 0, 0, 99), "no slot 99"),
    "layer out of range": (edit("steps", 0, "layer", 2), "no layer 2"),
    "operand missing": (edit("steps", 0, "operands", [[0, 0]]), "takes 3 operands"),
    "size missing": (edit("steps", 0, "sizes", []), "1 sizes"),
    "read beyond the end": (edit("steps", 0, "sizes", 0, ["+", ["*", 4, "n"], 1]), "reaches"),
    "offset beyond the end": (edit("steps", 0, "operands", 0, 1, 1), "reaches"),
    "negative offset": (edit("steps", 0, "operands", 0, 1, -1), "reaches"),
    "huge size": (edit("steps", 0, "sizes", 0, 1 << 49), "2**48"),
    "size that multiplies beyond all": (
        edit("steps", 0, "sizes", 0, ["*", 1 << 47, ["*", 1 << 20, "n"]]),
        "2**62",
    ),
    "wrong dtype": (edit("slots", 0, "type", ["int32", ["n", 4]]), "expected float32"),
    "unknown dtype": (edit("slots", 0, "type", ["float99", ["n", 4]]), "expected one of"),
    "unknown symbol": (edit("slots", 2, "type", ["float32", ["m", 4]]), "unknown symbol"),
    "deep expression": (edit("steps", 0, "sizes", 0, DEEP), "nested too deeply"),
    "expression that multiplies out": (edit("steps", 0, "sizes", 0, WIDE), "too"),
    "division by zero": (edit("steps", 0, "sizes", 0, ["floordiv", "n", 0]), "zero"),
    "division by what may be zero": (
        edit("steps", 0, "sizes", 0, ["floordiv", "n", ["+", "n", -1]]),
        "computed",
    ),
    "arena of strings": (edit("slots", 2, "type", ["string", ["n", 4]]), "no tensor"),
    "arena of unknown rank": (edit("slots", 2, "type", ["float32", None]), "no tensor"),
    "huge arena": (edit("slots", 2, "type", ["float32", [1 << 48, 1 << 20]]), "2**62"),
    "negative axis": (edit("slots", 2, "type", ["float32", [-1, 4]]), "negative"),
    "view beyond the end": (edit("slots", 3, "offset", ["*", 17, "n"]), "no part"),
    "view before the start": (edit("slots", 3, "offset", -4), "no part"),
    "view between elements": (edit("slots", 3, "offset", 2), "no part"),
    "view of itself": (edit("slots", 3, "alias", 3), "cycle"),
    "view of nothing": (edit("slots", 3, "alias", 99), "no slot 99"),
    "offset without a view": (edit("slots", 0, "offset", 4), "no view"),
    "read before written": (edit("steps", 2, "operands", 0, 0, 5), "no tensor in memory"),
    "host value read before written": (edit("steps", 3, "inputs", 0, 7), "before anything"),
    "output never written": (edit("steps", 5, "outputs", []), "before anything"),
    "weight written": (edit("steps", 0, "operands", 2, 0, 1), "may not be written"),
    "input written": (edit("steps", 0, "operands", 2, 0, 0), "may not be written"),
    "written twice": (edit("steps", 5, "outputs", 0, 7), "written twice"),
    "written twice by one step": (edit("steps", 5, "outputs", [6, 6]), "written twice"),
    "host overwrites a kernel": (edit("steps", 4, "outputs", 0, 4), "written twice"),
    "data symbol never declared": (edit("steps", 3, "declares", []), "no value yet"),
    "declared twice": (edit("steps", 4, "declares", [["found", 0, 0]]), "still without"),
    "input symbol declared": (edit("steps", 3, "declares", [["n", 0, 1]]), "still without"),
    "declared from no axis": (edit("steps", 3, "declares", [["found", 0, 2]]), "no axis"),
    "last case guarded": (
        edit("steps", 1, "cases", 1, "guards", [["<=", "n", 1]]),
        "must have no guards",
    ),
    "no cases": (edit("steps", 1, "cases", []), "must have no guards"),
    "unknown relation": (edit("steps", 1, "cases", 0, "guards", 0, 0, ">"), "expected one of"),
    "unknown operator": (edit("steps", 5, "operator", "name", "System"), "System"),
    "unknown version": (edit("steps", 5, "operator", "since", 12), "no version 12"),
    "unknown attribute": (edit("steps", 5, "operator", "attributes", {"x": 1}), "no attribute"),
    "unknown function": (edit("steps", 5, "function", "eval"), "expected one of"),
    "body missing": (edit("steps", 4, "bodies", []), "wrong number of bodies"),
    "body with other inputs": (edit("steps", 4, "inputs", [None, None, 4, 4]), "inputs and out"),
    "body where none belongs": (
        lambda d: d["steps"][5].update(bodies=d["steps"][4]["bodies"]),
        "only control flow",
    ),
    "body reads what is not written": (
        edit("steps", 4, "bodies", 0, "steps", 1, "inputs", 0, 4),
        "bodies[0].steps[1]",
    ),
    "unknown kernel": (edit("kernels", 0, "kind", "nothing"), "no kernel is called"),
    "kernel field": (edit("kernels", 0, "fields", "factor", 10), "factor"),
    "unknown place": (edit("slots", 0, "place", "disk"), "expected one of"),
    "output not listed": (edit("outputs", [4]), "not the slots"),
    "output listed twice": (edit("outputs", [4, 4, 6]), "not the slots"),
    "two outputs of one name": (edit("slots", 6, "name", "y"), "same name"),
    "weight unknown": (edit("slots", 1, "name", "v"), "no weight"),
    "weight of another shape": (edit("weights", 0, "shape", [5]), "the weight is"),
    "weight too great": (edit("weights", 0, "shape", [1 << 40, 1 << 40]), "2**48"),
    "symbol of no input": (edit("symbols", 0, "source", ["input", "z", 0]), "no tensor input"),
    "symbol of another axis": (edit("symbols", 0, "source", ["input", "x", 1]), "axis 1"),
    "usual outside": (edit("symbols", 0, "usual", [65]), "leaves"),
    "least above greatest": (edit("symbols", 0, "least", 65), "usual"),
    "no greatest": (edit("symbols", 0, "greatest", None), "number as its greatest"),
    "symbol twice": (edit("symbols", 1, "name", "n"), "listed twice"),
    "recipe of the future": (edit("weights", 0, "recipe", 0, "inputs", [1]), "takes values"),
    "recipe unknown": (edit("weights", 0, "recipe", 0, "function", "exec"), "expected one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_refused_with_its_place(sample: Program, name: str) -> None:
    change, message = REFUSED[name]
    changed = document(sample)
    change(changed)
    with pytest.raises(PlanCorruptError) as refusal:
        program_from_json(changed)
    assert message in str(refusal.value)


def test_bodies_cannot_be_nested_for_ever(sample: Program) -> None:
    changed = document(sample)
    step = changed["steps"][4]
    for _ in range(20):
        body = step["bodies"][0]
        step = json.loads(json.dumps(step))
        step["bodies"] = [json.loads(json.dumps(body))]
        body["steps"].append(step)
    with pytest.raises(PlanCorruptError):
        program_from_json(changed)


def test_an_output_may_update_an_input_in_place(sample: Program) -> None:
    slots = list(sample.slots)
    slots[4] = replace(slots[4], alias=0)
    check_program(replace(sample, slots=tuple(slots)))


def test_a_weight_cannot_be_written_through_a_view(sample: Program) -> None:
    slots = list(sample.slots)
    slots[2] = replace(slots[2], type=slots[1].type, alias=1)
    slots[3] = replace(slots[3], type=slots[1].type, offset=0)
    with pytest.raises(PlanCorruptError, match="may not be written"):
        check_program(replace(sample, slots=tuple(slots)))


def test_a_symbol_of_nowhere_is_refused_before_it_is_written(sample: Program) -> None:
    steps = list(sample.steps)
    steps[0] = replace(steps[0], sizes=(symbol("elsewhere"),))
    with pytest.raises(PlanCorruptError, match="elsewhere"):
        check_program(replace(sample, steps=tuple(steps)))


def paths(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = found if isinstance(found, dict) else range(len(found) if isinstance(found, list) else 0)
    for key in keys:
        yield (*path, key)
        yield from paths(found[key], (*path, key))


VALUES: list[Any] = [None, True, -1, 0, 1, 2, 3, 7, 1 << 40, 0.5, "", "n", "found", [], {}, DEEP]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_change_is_refused_by_name_or_still_a_program(sample: Program, data: Any) -> None:
    changed = document(sample)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(paths(changed))))
        value = data.draw(st.sampled_from([*VALUES, KeyError]))
        edit(*path, copy.deepcopy(value))(changed)
    try:
        found = program_from_json(changed)
    except PlanCorruptError:
        return
    assert program_from_json(document(found)) == found
