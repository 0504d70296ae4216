"""Lanes: what waits for what follows from slots; what may run side by side never shares memory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.errors import PlanCorruptError
from engine.plan.arena import plan_arena
from engine.plan.checking import check_program
from engine.plan.decoding import program_from_json
from engine.plan.device import ClearStep, LaunchStep, Pointer, Scalar
from engine.plan.encoding import program_to_json
from engine.plan.lanes import START, check_order, order_steps
from engine.plan.structure import HostStep, Program, Slot
from engine.runtime.cuda_layout import lay_out
from engine.runtime.steps import arena_requests
from tests.cuda_programs import (
    ACCUMULATE,
    VECTOR,
    N,
    chain,
    launch,
    program,
    scale,
    side_by_side,
    weight_slot,
)

SIZES = {"N": 100}


def order_of(found: Program) -> Any:
    return order_steps(found, found.steps, SIZES)


def test_a_branch_waits_where_it_leaves_and_is_waited_for_where_it_is_read() -> None:
    order = order_of(side_by_side())
    assert order.waits == ((), (), (), (0,), (), (3,), (), ())
    assert order.windows[0] == (0, 0) and order.windows[6] == (6, 6)
    assert order.windows[1] == (1, 3) and order.windows[3] == (1, 4)


def test_two_lanes_beside_the_main_one_begin_and_end_with_it() -> None:
    order = order_of(side_by_side(1, 2))
    assert order.waits == ((), (0,), (), (0,), (), (3, 4), (), ())


def test_a_program_on_one_lane_has_no_order_and_its_json_no_lanes() -> None:
    for found in (side_by_side(0, 0), chain(5)):
        assert order_of(found) is None
        assert all("lane" not in step for step in program_to_json(found)["steps"])


def test_lanes_are_read_back_as_written() -> None:
    for found in (side_by_side(), side_by_side(3, 1, host=True)):
        written = json.loads(json.dumps(program_to_json(found)))
        assert program_from_json(written) == found
    lanes = [step.get("lane") for step in program_to_json(side_by_side())["steps"]]
    assert lanes == [None, None, None, 1, None, None, None]


@pytest.mark.parametrize("lane", [0, 4, -1, True, "1", None])
def test_lanes_that_are_none_are_refused(lane: Any) -> None:
    written = program_to_json(side_by_side())
    written["steps"][3]["lane"] = lane
    with pytest.raises(PlanCorruptError, match="lane"):
        program_from_json(written)
    if isinstance(lane, int) and lane not in (0, 1):
        steps = list(side_by_side().steps)
        assert isinstance(steps[3], LaunchStep)
        steps[3] = replace(steps[3], lane=lane)
        with pytest.raises(PlanCorruptError, match="there is no lane"):
            check_program(replace(side_by_side(), steps=tuple(steps)))


def test_a_step_of_the_host_has_no_lane() -> None:
    written = program_to_json(side_by_side(host=True))
    written["steps"][6]["lane"] = 1
    with pytest.raises(PlanCorruptError, match="lane"):
        program_from_json(written)


def test_the_host_waits_for_all_lanes_and_they_for_it() -> None:
    slots = [Slot(VECTOR, "input", "x"), weight_slot(), *[Slot(VECTOR, "arena")] * 3]
    slots.append(Slot(VECTOR, "output", "y"))
    steps = [
        replace(scale(0, 1, 2, 2.0, 0), lane=1),
        HostStep("copy", {}, (0,), (3,), layer=1),
        replace(scale(0, 1, 4, 2.0, 2), lane=2),
        scale(3, 1, 5, 2.0, 3),
    ]
    order = order_of(program(slots, steps))
    assert order.waits == ((START,), (0,), (1,), (), (2,))


def test_memory_written_again_is_waited_for_too() -> None:
    """A lane that reads what the main one writes anew later: nothing but the order tells."""
    slots = [Slot(VECTOR, "input", "x"), weight_slot(), *[Slot(VECTOR, "arena")] * 2]
    slots.append(Slot(VECTOR, "output", "y"))
    steps = [
        scale(0, 1, 2, 2.0, 0),
        replace(scale(2, 1, 3, 2.0, 1), lane=1),
        scale(0, 1, 2, 3.0, 2),
        launch(ACCUMULATE, 3, Pointer(2), Pointer(3, writes=True), Scalar("i32", N)),
        scale(3, 1, 4, 1.0, 4),
    ]
    assert order_of(program(slots, steps)).waits == ((), (0,), (1,), (), (), ())


def sliced(*places: int, clear: bool = False) -> Program:
    """Two lanes that write parts of one tensor, one of which may be set to zero first."""
    slots = [Slot(VECTOR, "input", "x"), weight_slot(), Slot(VECTOR, "arena")]
    slots.append(Slot(VECTOR, "output", "y"))
    steps: list[Any] = []
    for lane, place in enumerate(places):
        parameters = (Pointer(0), Pointer(1), Pointer(2, place, writes=True), Scalar("i32", 8))
        step = launch(ACCUMULATE, lane, *parameters)
        steps.append(replace(step, lane=lane))
    if clear:
        steps[0] = ClearStep(2, 0)
    return program(slots, [*steps, scale(2, 1, 3, 1.0, 2)])


def test_slices_are_written_side_by_side_and_the_same_place_in_turns() -> None:
    assert order_of(sliced(0, 8)).waits == ((), (START,), (1,), ())
    assert order_of(sliced(8, 8)).waits == ((), (0,), (1,), ())
    assert order_of(sliced(0, 8, clear=True)).waits == ((), (0,), (1,), ())


def test_counters_are_never_shared_side_by_side() -> None:
    slots = list(sliced(0, 8).slots)
    slots[2] = replace(slots[2], place="zeros")
    order = order_of(replace(sliced(0, 8), slots=tuple(slots)))
    assert order.waits == ((), (0,), (1,), ())


def without(order: Any, step: int) -> Any:
    waits = [() if at == step else found for at, found in enumerate(order.waits)]
    return replace(order, waits=tuple(waits))


def test_an_order_with_a_race_is_refused() -> None:
    for found in (side_by_side(), side_by_side(1, 2), sliced(8, 8)):
        order = order_of(found)
        steps: Any = found.steps
        check_order(found, steps, SIZES, order)
        for step in (at for at, waits in enumerate(order.waits[:-1]) if {*waits} - {START}):
            with pytest.raises(PlanCorruptError, match="side by side and touch the same slot"):
                check_order(found, steps, SIZES, without(order, step))


def test_memory_that_lanes_share_is_refused() -> None:
    found = side_by_side()
    order, steps = order_of(found), found.steps
    places = dict(lay_out(found, steps, SIZES).arena.offsets)
    check_order(found, steps, SIZES, order, places)
    places[5] = places[3]  # the other branch's result
    with pytest.raises(PlanCorruptError, match=r"layer 1 and layer 3 run side by side .* memory"):
        check_order(found, steps, SIZES, order, places)


def test_what_branches_hold_lies_apart_and_main_lanes_take_turns_as_before() -> None:
    serial, parallel = side_by_side(0, 0), side_by_side()
    spans = {}
    for name, found in (("serial", serial), ("parallel", parallel)):
        requests = arena_requests(found, found.steps, SIZES)
        spans[name] = {item.id: (item.first, item.last) for item in requests}
        plan_arena(requests)
    assert spans["serial"] == {2: (0, 3), 3: (1, 2), 4: (2, 4), 5: (3, 5), 6: (4, 6)}
    assert spans["parallel"] == {2: (0, 4), 3: (1, 3), 4: (2, 4), 5: (1, 5), 6: (3, 6)}


def random_program(seed: int) -> Program:
    """Steps that read and write a few tensors, on any lanes."""
    random = np.random.default_rng(seed)
    slots = [Slot(VECTOR, "input", "x"), weight_slot(), *[Slot(VECTOR, "arena")] * 9]
    slots.append(Slot(VECTOR, "output", "y"))
    filled, steps = [0], list[Any]()
    for position in range(24):
        to = int(random.integers(2, 10))
        step = scale(int(random.choice(filled)), 1, to, 2.0, position)
        steps.append(replace(step, lane=int(random.integers(0, 4))))
        filled = sorted({*filled, to})
        if position == 15 and seed % 3 == 0:
            steps.append(HostStep("copy", {}, (int(random.choice(filled)),), (10,), layer=0))
            filled.append(10)
    return program(slots, [*steps, scale(filled[-1], 1, 11, 1.0, 24)])


@pytest.mark.parametrize("seed", range(30))
def test_orders_of_random_programs_have_no_race_and_no_wait_too_many(seed: int) -> None:
    found = random_program(seed)
    steps: Any = found.steps
    order = order_of(found)
    layout = lay_out(found, steps, SIZES)  # refuses what shares memory
    assert layout.arena.nbytes >= layout.arena.lower_bound
    check_order(found, steps, SIZES, order, layout.arena.offsets)
    for step, waits in enumerate(order.waits[:-1]):
        for left in waits if not isinstance(steps[step], HostStep) else ():
            others = tuple(at for at in waits if at != left)
            fewer = (*order.waits[:step], others, *order.waits[step + 1 :])
            if left != START and not isinstance(steps[left], HostStep):
                with pytest.raises(PlanCorruptError, match=r"side by side|beside"):
                    check_order(found, steps, SIZES, replace(order, waits=fewer))
