"""Outputs that update inputs in place: what is made there, what is copied, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine.building import BuildOptions, assemble_plan, optimise, read_model
from engine.errors import FeedError, OptionError, PlanCorruptError
from engine.ir.graph import Graph
from engine.lower.updates import copy_order, plan_updates, shared_operands
from engine.plan.checking import check_program
from engine.plan.structure import HostStep, Program
from engine.runtime.context import Context
from engine.runtime.engine import Engine
from tests.engine.small_models import model

STATE = """(float[4, 8] x, float[4, 8] past) => (float[4, 8] y, float[4, 8] present) {
    present = Add (past, x) y = Exp (present) }"""
CACHE = """(float[2, 3, 8, 16] cache, float[2, 3, 1, 16] new, int64[2] place)
    => (float[2, 3, 8, 16] present, float[2, 3, 8, 16] y) {
    present = TensorScatter <axis = 2> (cache, new, place) y = Neg (present) }"""
SHIFT = """(float[8] x, float[8] a, float[8] b) => (float[8] y, float[8] next_a, float[8] next_b) {
    y = Add (b, x) next_a = Identity (x) next_b = Identity (a) }"""
SWAP = """(float[8] a, float[8] b) => (float[8] next_a, float[8] next_b) <int64[1] s = {8}> {
    next_a = Reshape (b, s) next_b = Reshape (a, s) }"""
TURN = """(float[8] x, float[8] a, float[8] b) => (float[8] y, float[8] next_a, float[8] next_b)
    <int64[1] s = {8}> { y = Reshape (a, s) next_a = Reshape (x, s) next_b = Reshape (a, s) }"""
NEIGHBOURS = """(float[8, 8] past) => (float[8, 8] present) {
    present = Softmax (past) }"""
LATER = """(float[4, 8] x, float[4, 8] past) => (float[4, 8] present, float[4, 8] y) {
    present = Add (past, x) s = ReduceSum <keepdims = 1> (present, axis) m = MatMul (s, w)
    y = Sub (m, past) }"""


def graph_of(body: str, **details: Any) -> Graph:
    opset = details.pop("opset", None)
    made = model(body, **({"opset": opset} if opset else {}), **details)
    return optimise(read_model(made, BuildOptions(level=0)))


def planned(body: str, updates: Mapping[str, str], **details: Any) -> Program:
    options = BuildOptions(level=0, updates=updates)
    made = model(body, **details)
    program = assemble_plan(optimise(read_model(made, options)), options, []).program
    check_program(program)
    return program


def copies(program: Program) -> int:
    return sum(isinstance(s, HostStep) and s.function == "copy" for s in program.steps)


def context_of(body: str, updates: Mapping[str, str], **details: Any) -> Context:
    plan = engine.build(model(body, **details), level=0, updates=updates)
    net = engine.load(plan, compile="wait")
    assert isinstance(net, Engine)
    return net.create_context()


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_elementwise_update_is_made_in_the_inputs_memory() -> None:
    program = planned(STATE, {"present": "past"})
    assert copies(program) == 0
    (slot,) = [s for s in program.slots if s.name == "present"]
    assert slot.alias is not None and program.slots[slot.alias].name == "past"


def test_a_state_is_kept_from_run_to_run() -> None:
    context = context_of(STATE, {"present": "past"})
    x, total = random(4, 8), np.zeros((4, 8), np.float32)
    for _ in range(3):
        total = total + x
        found = context.run({"x": x})
        np.testing.assert_allclose(found["present"], total, rtol=1e-6)
        np.testing.assert_allclose(found["y"], np.exp(total), rtol=1e-5)
    context.reset()
    np.testing.assert_allclose(context.run({"x": x})["present"], x, rtol=1e-6)


def test_what_is_fed_begins_the_state_and_is_not_touched() -> None:
    context = context_of(STATE, {"present": "past"})
    x, past = random(4, 8), random(4, 8, seed=1)
    kept = past.copy()
    first = context.run({"x": x, "past": past})["present"]
    np.testing.assert_array_equal(past, kept)
    np.testing.assert_allclose(first, kept + x, rtol=1e-6)
    context.run({"x": x})
    np.testing.assert_allclose(first, kept + x, rtol=1e-6)


def test_a_bound_buffer_is_the_state() -> None:
    context = context_of(STATE, {"present": "past"})
    x, buffer = random(4, 8), np.ones((4, 8), np.float32)
    context.bind("past", buffer)
    context.run({"x": x})
    context.run({"x": x})
    np.testing.assert_allclose(buffer, 1 + 2 * x, rtol=1e-5)
    with pytest.raises(FeedError, match="bind that one"):
        context.bind("present", buffer)


def test_rows_are_written_to_a_cache_in_place() -> None:
    program = planned(CACHE, {"present": "cache"}, opset=24)
    assert copies(program) == 0
    context = context_of(CACHE, {"present": "cache"}, opset=24)
    wanted = np.zeros((2, 3, 8, 16), np.float32)
    for step in range(4):
        new = random(2, 3, 1, 16, seed=step)
        places = np.array([step, 7 - step], np.int64)
        for sample, place in enumerate(places):
            wanted[sample, :, place] = new[sample, :, 0]
        found = context.run({"new": new, "place": places})
        np.testing.assert_array_equal(found["present"], wanted)
        np.testing.assert_array_equal(found["y"], -wanted)


@pytest.mark.parametrize(
    ("body", "updates", "steps"),
    [
        (SHIFT, {"next_a": "a", "next_b": "b"}, 1),
        (SWAP, {"next_a": "a", "next_b": "b"}, 4),
        (TURN, {"next_a": "a", "next_b": "b"}, 3),
        (NEIGHBOURS, {"present": "past"}, 1),
    ],
    ids=["shift", "swap", "turn", "neighbours"],
)
def test_what_cannot_be_made_in_place_is_copied_there_at_the_end(
    body: str, updates: Mapping[str, str], steps: int
) -> None:
    assert copies(planned(body, updates)) == steps
    context = context_of(body, updates)
    plain = engine.load(engine.build(model(body), level=0), compile="wait")
    feeds = {p.name: random(*p.type.dims, seed=i) for i, p in enumerate(plain.inputs)}  # type: ignore
    state = dict(feeds)
    for turn in range(3):
        wanted = plain(state)
        fed = feeds if turn == 0 else {k: v for k, v in feeds.items() if k not in updates.values()}
        found = context.run(fed)
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)
        state |= {into: wanted[name] for name, into in updates.items()}


def test_a_later_reader_of_the_old_value_is_named() -> None:
    details = {"weights": {"w": random(1, 8), "axis": np.array([1], np.int64)}}
    graph = graph_of(LATER, **details)
    updates = plan_updates(graph, {"present": "past"})
    place = (graph.output_names or []).index("present")
    assert not updates.in_place(place) and "afterwards" in updates.copied[place]
    context = context_of(LATER, {"present": "past"}, **details)
    x, past = random(4, 8), random(4, 8, seed=1)
    found = context.run({"x": x, "past": past})
    wanted = (past + x).sum(1, keepdims=True) @ details["weights"]["w"] - past
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"absent": "past"}, "no such output"),
        ({"present": "absent"}, "no such input"),
        ({"present": "x"}, "expected one type"),
        ({"present": "past", "y": "past"}, "another output updates already"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(updates: Mapping[str, str], message: str) -> None:
    body = STATE.replace("float[4, 8] x", "float[1, 8] x")
    with pytest.raises(OptionError, match=message) as caught:
        planned(body, updates)
    assert "\n" not in str(caught.value)


def test_which_operands_a_layer_writes_over() -> None:
    graph = graph_of(CACHE, opset=24)
    (update,) = graph.each("CacheUpdate")
    assert shared_operands(graph, {"present": "cache"}) == {update.name: ((0, 0),)}
    assert shared_operands(graph, {}) == {}


def test_a_plan_that_reads_an_input_after_its_update_is_refused() -> None:
    import dataclasses

    program = planned(CACHE, {"present": "cache"}, opset=24)
    (cache,) = [i for i, slot in enumerate(program.slots) if slot.name == "cache"]
    (present,) = [i for i, slot in enumerate(program.slots) if slot.name == "present"]
    (place,) = [
        i
        for i, step in enumerate(program.steps)
        if present in getattr(step, "inputs", ()) or present in _operands(step)[:1]
    ]
    step = program.steps[place]
    if isinstance(step, HostStep):
        step = dataclasses.replace(step, inputs=(cache,))
    else:
        operands = tuple((cache if s == present else s, o) for s, o in step.operands)  # type: ignore
        step = dataclasses.replace(step, operands=operands)  # type: ignore
    steps = (*program.steps[:place], step, *program.steps[place + 1 :])
    with pytest.raises(PlanCorruptError, match="after an output has updated it"):
        check_program(dataclasses.replace(program, steps=steps))


def _operands(step: Any) -> list[int]:
    return [slot for slot, _ in getattr(step, "operands", ())]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=7))
def test_copies_are_ordered_so_that_old_values_are_read(copies: list[tuple[int, int]]) -> None:
    copies = list({target: (source, target) for source, target in copies}.values())
    memory = {place: place for place in range(7)}
    wanted = memory | {target: memory[source] for source, target in copies}
    try:
        ordered = copy_order([item for item in copies if item[0] != item[1]])
    except ValueError:
        links = {target: source for source, target in copies if source != target}
        assert any(_cycle(links, start) for start in links)
        return
    for source, target in ordered:
        memory[target] = memory[source]
    assert memory == wanted


def _cycle(links: Mapping[int, int], start: int) -> bool:
    seen, place = set(), start
    while place in links and place not in seen:
        seen.add(place)
        place = links[place]
    return place in seen
