"""The desk of one process keeps the contract; and what only the database shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.desk import Done, Failed, Returned
from scheduler.names import parse_name
from scheduler.statements import trusted_keys, verify_statement
from scheduler.steps import Policy
from storage.blobs import read_blob
from tests.scheduler.desk_contract import DeskContract
from tests.scheduler.farm_parts import (
    Parts,
    claimed,
    make_parts,
    prepared,
    publication,
    record,
    spec,
)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path)


class TestLocalDesk(DeskContract):
    """The contract, on a database of this process."""


def state_of(parts: Parts, build_id: str) -> str:
    with parts.database.reading() as rows:
        return rows.builds.get(build_id).state


def build_whole(parts: Parts, content: bytes = b"engine", graph: str = "g" * 64) -> str:
    """Bring the queued build to its end; returns the engine's key."""
    parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, graph=graph))
    return parts.desk.publish(claimed(parts.desk).lease, publication(parts.blobs, content)).key


def test_the_step_after_the_shards_begins_when_the_last_shard_ends(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, policy=Policy(tasks_per_shard=2))
    parts.submit()
    parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, *"abcde"))
    shards = [claimed(parts.desk) for _ in range(3)]
    assert [len(shard.payload["tasks"]) for shard in shards] == [2, 2, 1]
    for shard in shards:
        assert parts.desk.claim(_other()) is None
        parts.desk.release(shard.lease, Done())
    assert claimed(parts.desk).kind == "assemble"


def _other() -> object:
    from scheduler.desk import Worker

    return Worker("worker-2", ("cpu",))


def test_equal_keys_are_one_build_and_its_engine_gets_every_name(parts: Parts) -> None:
    first = parts.submit(name=parse_name("resnet50:prod"))
    second = parts.submit(name=parse_name("resnet50"))
    assert (first.answer, second.answer) == ("queued", "attached")
    assert first.build is not None
    assert second.build is not None
    assert first.build.id == second.build.id
    key = build_whole(parts)
    with parts.database.reading() as rows:
        found = [(name.name, name.tag, name.key) for name in rows.engines.names()]
    assert found == [("resnet50", "latest", key), ("resnet50", "prod", key)]


def test_a_build_lives_on_while_one_submission_is_live(parts: Parts) -> None:
    first, second = parts.submit(), parts.submit()
    assert first.build is not None
    assert first.submission is not None
    assert second.submission is not None
    assert parts.submissions.cancel(first.submission.id).state == "queued"
    assert not parts.submissions.cancel(first.submission.id).cancel_requested
    assert parts.submissions.cancel(second.submission.id).state == "cancelled"
    assert parts.desk.claim(_other()) is None


def test_attaching_to_a_build_that_is_being_cancelled_keeps_it_alive(parts: Parts) -> None:
    build = parts.submit().build
    assert build is not None
    lease = claimed(parts.desk).lease
    parts.submissions.cancel(build.id)
    assert parts.submit().answer == "attached"
    assert not parts.desk.renew(lease).cancel_requested
    parts.desk.release(lease, prepared(parts.blobs))
    assert claimed(parts.desk).kind == "assemble"


def test_a_rebuild_is_a_new_generation_and_names_stay_where_they_point(parts: Parts) -> None:
    parts.submit(name=parse_name("resnet50:prod"))
    key = build_whole(parts, b"first")
    assert parts.submit(force=True).answer == "queued"
    assert build_whole(parts, b"second") == key
    with parts.database.reading() as rows:
        current = rows.engines.current(key)
        pointer = rows.engines.named("resnet50", "prod")
    assert current is not None
    assert (current.generation, pointer.generation) == (2, 1)


def test_an_engine_whose_file_is_gone_is_built_again(parts: Parts) -> None:
    parts.submit()
    key = build_whole(parts)
    with parts.database.reading() as rows:
        engine = rows.engines.current(key)
    assert engine is not None
    parts.blobs.delete(engine.digest)
    assert parts.submit().answer == "queued"
    build_whole(parts)
    assert parts.submit().answer == "hit"


def test_another_export_of_the_same_graph_is_found_after_preparing(parts: Parts) -> None:
    parts.submit(spec(b"one export"))
    key = build_whole(parts)
    other = parts.submit(spec(b"another export"), name=parse_name("other")).build
    assert other is not None
    parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs))
    assert state_of(parts, other.id) == "done"
    with parts.database.reading() as rows:
        engine = rows.engines.current(other.key)
        assert rows.engines.named("other", "latest").key == other.key
    assert engine is not None
    assert engine.same_as == key
    assert engine.key != key


@pytest.mark.parametrize("changes", [{"level": 5}, {"reference": False}])
def test_the_same_graph_under_other_options_is_built(
    parts: Parts, changes: dict[str, object]
) -> None:
    parts.submit(spec(b"one export"))
    build_whole(parts)
    parts.submit(spec(b"another export", **changes))
    parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs))
    assert claimed(parts.desk).kind == "assemble"


def test_the_statement_of_an_engine_names_model_and_timings(parts: Parts, tmp_path: Path) -> None:
    parts.submit()
    parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, "conv"))
    tune = claimed(parts.desk)
    parts.desk.record(tune.lease, timings=[record("conv")])
    parts.desk.release(tune.lease, Done())
    engine = parts.desk.publish(claimed(parts.desk).lease, publication(parts.blobs))
    statement = verify_statement(
        read_blob(parts.blobs, engine.statement_digest),
        digest=engine.digest,
        trusted=trusted_keys(tmp_path / "keys"),
    )
    definition = statement["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["key"] == engine.key
    assert definition["resolvedDependencies"] == [
        {"name": "model/model.onnx", "digest": {"sha256": spec().files[0].digest}},
        {"name": "timings", "digest": {"sha256": engine.report["timing_set"]}},
    ]


def test_a_job_that_keeps_losing_workers_is_given_up(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, policy=Policy(losses_allowed=2))
    build = parts.submit().build
    assert build is not None
    for _ in range(3):
        claimed(parts.desk)
        assert parts.desk.abandon(build.id) == 1
    with parts.database.reading() as rows:
        ended = rows.builds.get(build.id)
    assert ended.state == "failed"
    assert ended.failure is not None
    assert ended.failure["kind"] == "infrastructure"
    assert "3 workers were lost" in ended.failure["message"]


def test_a_job_that_gets_on_is_not_given_up(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, policy=Policy(losses_allowed=1))
    build = parts.submit().build
    assert build is not None
    parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, *"abcd"))
    for signature in "abcd":
        tune = claimed(parts.desk)
        parts.desk.record(tune.lease, timings=[record(signature)])
        parts.desk.abandon(build.id)
        assert state_of(parts, build.id) == "queued"
    claimed(parts.desk)
    parts.desk.abandon(build.id)
    assert state_of(parts, build.id) == "failed"


def test_infrastructure_failures_are_tried_again_as_often_as_allowed(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, policy=Policy(failures_allowed=1))
    build = parts.submit().build
    assert build is not None
    failure = Failed("infrastructure", "OSError", "no space")
    parts.desk.release(claimed(parts.desk).lease, failure)
    assert state_of(parts, build.id) == "queued"
    parts.desk.release(claimed(parts.desk).lease, failure)
    assert state_of(parts, build.id) == "failed"


def test_a_shard_that_fails_takes_its_sisters_leases_away(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, policy=Policy(tasks_per_shard=1))
    parts.submit()
    parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, "a", "b", "c"))
    first, second = claimed(parts.desk), claimed(parts.desk)
    parts.desk.release(first.lease, Failed("model", "ModelError", "no"))
    from scheduler.errors import LeaseLostError

    with pytest.raises(LeaseLostError):
        parts.desk.release(second.lease, Returned())
    assert parts.desk.claim(_other()) is None
