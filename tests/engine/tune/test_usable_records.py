"""Timing records count for the device and the toolchain that they were made with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import engine
from engine.building import BuildOptions, optimise, read_model
from engine.profile import profile_symbols
from engine.tactics import candidates
from engine.target import describe
from engine.tune.choosing import usual_point
from engine.tune.records import TimingRecord, layer_signature
from engine.tune.tuning import toolchain_digest, usable_records
from tests.engine.small_models import model

PROTO = model(
    "(float[4, 8] x) => (float[4, 6] y) { y = MatMul (x, w) }",
    weights={"w": np.ones((8, 6), np.float32)},
)


@pytest.fixture(scope="module")
def favouring() -> TimingRecord:
    """A record of this machine for the candidate that is offered last."""
    options = BuildOptions()
    graph = optimise(read_model(PROTO, options))
    (node,) = graph.nodes
    point = usual_point(profile_symbols(graph, options.profile))
    found, _ = candidates(node, options.tactics, point, describe())
    last = found[-1]
    assert len(found) > 1
    return TimingRecord(
        layer_signature(node, point)[0],
        last.tactic,
        dict(last.choice),
        {},
        describe().to_json(),
        toolchain_digest(),
        1.0,
        samples=1,
    )


def tactic(*records: TimingRecord) -> tuple[str, str]:
    (layer,) = engine.build(PROTO, level=0, records=records).program.layers
    return layer.tactic, str(layer.choice)


def test_a_record_of_this_machine_counts(favouring: TimingRecord) -> None:
    assert usable_records([favouring], "cpu") == [favouring]
    assert tactic(favouring) == (favouring.tactic, str(favouring.choice)) != tactic()


def test_records_of_other_devices_and_toolchains_do_not(favouring: TimingRecord) -> None:
    elsewhere = replace(favouring, target={**favouring.target, "isa": "another"})
    older = replace(favouring, toolchain="older")
    assert usable_records([elsewhere, older], "cpu") == []
    assert tactic(elsewhere, older) == tactic()


def test_a_gpu_that_is_described_takes_its_own_records_alone(favouring: TimingRecord) -> None:
    own = replace(
        favouring,
        target=describe("cuda:sm90").to_json(),
        toolchain=toolchain_digest("cuda:sm90"),
    )
    assert usable_records([favouring, own], "cuda:sm90") == [own]
    assert usable_records([own], "cuda:sm80") == []
