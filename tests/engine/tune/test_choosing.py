"""Choosing is a pure function of records: order, ties, spread, the lockfile and failures."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.building import BuildOptions
from engine.ir.graph import Graph, Node
from engine.onnx_io import read
from engine.passes import run_pipeline
from engine.profile import profile_symbols
from engine.tactics import Candidate, candidates
from engine.target import describe
from engine.tune import choosing
from engine.tune.choosing import TIE_SHARE, choose, usual_point
from engine.tune.records import TimingRecord, layer_description, layer_signature
from tests.engine.small_models import graph_of, model

BODY = "(float[64, 48] x) => (float[] y) { a = MatMul (x, w) y = Relu (a) }"
WEIGHTS = {"w": np.ones((48, 40), np.float32)}


def prepared(body: str = BODY) -> Graph:
    graph = read(model(body, weights=WEIGHTS))
    run_pipeline(graph)
    return graph


GRAPH = prepared()
(NODE,) = GRAPH.nodes
OFFERED = candidates(NODE, ("c", "numpy"), {}, describe())[0]
SIGNATURE, _ = layer_signature(NODE, {})


def record(candidate: Candidate, time_ns: float, **changes: Any) -> TimingRecord:
    made = TimingRecord(
        signature=SIGNATURE,
        tactic=candidate.tactic,
        choice=dict(candidate.choice),
        point={},
        target={"vendor": "cpu"},
        toolchain="none",
        time_ns=time_ns,
        samples=20,
    )
    return dataclasses.replace(made, **changes)


def chosen(records: list[TimingRecord], **options: Any) -> Candidate | None:
    found = choose(GRAPH, BuildOptions(**options), (), records)
    return found[NODE.name][0] if NODE.name in found else None


def same(found: Candidate | None, wanted: Candidate) -> bool:
    return found is not None and (found.tactic, found.choice) == (wanted.tactic, wanted.choice)


def test_there_is_something_to_choose() -> None:
    assert len(OFFERED) >= 3


def test_without_records_the_first_candidate_is_taken() -> None:
    assert same(chosen([]), OFFERED[0])


@pytest.mark.parametrize("place", range(len(OFFERED)))
def test_the_fastest_wins(place: int) -> None:
    records = [record(c, 1000.0 if i == place else 2000.0) for i, c in enumerate(OFFERED)]
    assert same(chosen(records), OFFERED[place])
    (candidate, time_ns) = choose(GRAPH, BuildOptions(), (), records)[NODE.name]
    assert time_ns == 1000 and same(candidate, OFFERED[place])


def test_ties_go_to_what_is_offered_first() -> None:
    within = 1000.0 * (1 + TIE_SHARE)
    assert same(chosen([record(OFFERED[1], 1000), record(OFFERED[0], within)]), OFFERED[0])
    beyond = 1000.0 * (1 + TIE_SHARE) + 1
    assert same(chosen([record(OFFERED[1], 1000), record(OFFERED[0], beyond)]), OFFERED[1])


def test_a_noisy_measurement_ties_within_twice_its_spread() -> None:
    noisy = record(OFFERED[0], 1190, spread=0.1)
    assert same(chosen([record(OFFERED[1], 1000, spread=0.1), noisy]), OFFERED[0])
    assert same(chosen([record(OFFERED[1], 1000), noisy]), OFFERED[1]), "noise makes nothing fast"
    steady = record(OFFERED[0], 1190, spread=0.01)
    assert same(chosen([record(OFFERED[1], 1000), steady]), OFFERED[1])


def test_the_lockfile_decides_among_ties_and_nothing_else() -> None:
    lock = {SIGNATURE: {"tactic": OFFERED[1].tactic, "choice": dict(OFFERED[1].choice)}}
    tied = [record(candidate, 1000) for candidate in OFFERED]
    assert same(chosen(tied, lockfile=lock), OFFERED[1])
    slower = [record(OFFERED[0], 1000), record(OFFERED[1], 2000)]
    assert same(chosen(slower, lockfile=lock), OFFERED[0])
    assert same(chosen([], lockfile=lock), OFFERED[1])
    assert same(chosen([], lockfile={SIGNATURE: "nonsense"}), OFFERED[0])


def test_a_failed_candidate_is_never_chosen() -> None:
    failed = record(OFFERED[0], 0.0, status="failed", samples=0, reason="it crashed")
    assert same(chosen([failed]), OFFERED[1])
    assert same(chosen([failed, record(OFFERED[2], 5000)]), OFFERED[2])
    assert chosen([dataclasses.replace(record(c, 0), status="failed") for c in OFFERED]) is None
    lock = {SIGNATURE: {"tactic": OFFERED[0].tactic, "choice": dict(OFFERED[0].choice)}}
    assert same(chosen([failed], lockfile=lock), OFFERED[1])


def test_a_record_of_another_layer_does_not_count() -> None:
    assert same(chosen([record(OFFERED[1], 1, signature="0" * 64)]), OFFERED[0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_of_records_does_not_matter(data: st.DataObject) -> None:
    numbers = st.sampled_from([900.0, 1000.0, 1010.0, 1500.0])
    records = [
        record(
            candidate,
            data.draw(numbers),
            spread=data.draw(st.sampled_from([0.0, 0.1, 0.4])),
            samples=data.draw(st.sampled_from([4, 20])),
            status=data.draw(st.sampled_from(["ok", "ok", "failed"])),
        )
        for candidate in OFFERED
        for _ in range(2)
    ]
    shuffled = data.draw(st.permutations(records))
    first, second = chosen(records), chosen(list(shuffled))
    assert (first is None) == (second is None)
    assert first is None or same(second, first)


def test_records_survive_json() -> None:
    made = record(OFFERED[0], 12.5, spread=0.25, layer="somewhere")
    again = TimingRecord.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made and again.layer == "somewhere" and again.key == made.key
    assert TimingRecord.from_json({**made.to_json(), "later": 1}) == made


def signature_of(body: str, point: dict[str, int] | None = None, **details: Any) -> str:
    graph = graph_of(body, **details)
    return layer_signature(graph.nodes[0], point or {})[0]


def test_a_signature_covers_what_speed_depends_on() -> None:
    body = "(float[N, 48] x) => (float[] y) { y = MatMul (x, w) }"
    found = {
        signature_of(body, {"N": 4}, weights=WEIGHTS),
        signature_of(body, {"N": 5}, weights=WEIGHTS),
        signature_of(body.replace("N", "4"), weights=WEIGHTS),
        signature_of(
            "(float[N, 48] x, float[48, 40] w) => (float[] y) { y = MatMul (x, w) }", {"N": 4}
        ),
        signature_of("(float[N, 48] x) => (float[] y) { y = Softmax (x) }", {"N": 4}),
        signature_of("(float[N, 48] x) => (float[] y) { y = Softmax <axis = 0> (x) }", {"N": 4}),
    }
    assert len(found) == 6


def test_a_signature_does_not_depend_on_names_or_values() -> None:
    first = signature_of(
        "(float[N, 48] x) => (float[] y) { y = MatMul (x, w) }", {"N": 4}, weights=WEIGHTS
    )
    second = signature_of(
        "(float[batch, 48] images) => (float[] z) { z = MatMul (images, w) }",
        {"batch": 4},
        weights={"w": np.zeros((48, 40), np.float32)},
    )
    assert first == second


def test_a_description_is_json() -> None:
    node: Node = NODE
    assert json.loads(json.dumps(layer_description(node)))["inputs"]


def test_the_usual_point_is_that_of_the_symbols() -> None:
    from engine.plan.structure import Symbol

    symbols = [Symbol("N", 1, (8, 4), 32, ("input", "x", 0))]
    assert usual_point(symbols) == {"N": 8}


def test_a_size_that_only_contents_tell_keeps_no_gpu_from_being_built_for() -> None:
    graph = read(model("(float[n, 8] x) => (int64[2, found] y) { y = NonZero (x) }"))
    run_pipeline(graph)
    (node,) = graph.nodes
    options = BuildOptions(target="cuda:sm90", level=0, tactics=("cublaslt", "cudnn", "numpy"))
    symbols = profile_symbols(graph, options.profile)
    assert "n" in {symbol.name for symbol in symbols}
    assert choose(graph, options, symbols, []) == {}  # its meaning serves
    signature, _ = layer_signature(node, usual_point(symbols))
    known = dataclasses.replace(record(OFFERED[0], 5.0), signature=signature, tactic="cudnn.none")
    assert choose(graph, options, symbols, [known]) == {}


def test_algorithms_of_another_version_of_a_library_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(algorithm: str, version: int) -> Candidate:
        return Candidate("c.library", {"algorithm": algorithm, "version": version}, _nothing)

    def restored(node: Node, tactic: str, choice: Any, target: Any) -> Candidate:
        return Candidate(tactic, choice, _nothing)

    monkeypatch.setattr(choosing, "restore", restored)
    older, newer = made("a", 1), made("b", 2)
    records = [record(older, 10.0), record(newer, 20.0), record(OFFERED[0], 30.0)]
    assert same(chosen(records), newer) and same(chosen(records[::-1]), newer)
    assert same(chosen([records[0], records[2]]), older)  # no other version is known

    here = [choosing.Offer(item) for item in (*OFFERED, made("c", 1))]
    monkeypatch.setattr(choosing, "offers", lambda *_: list(here))
    assert same(chosen(records), older)
    damaged = dataclasses.replace(records[0], choice={"algorithm": "a", "version": "1"})
    assert same(chosen([damaged, records[2]]), OFFERED[0])


def _nothing(*_: Any) -> None:
    """Steps that no test looks at."""
