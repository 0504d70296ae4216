"""What every desk promises, in one process or over a wire; subclass it with a `parts` fixture."""

from __future__ import annotations

import pytest

from scheduler.desk import Cancelled, Done, Failed, Publication, Returned, Worker
from scheduler.errors import LeaseLostError, SchedulerError
from storage.digest import digest_of_bytes
from storage.errors import NotFoundError
from tests.scheduler.farm_parts import Parts, claimed, prepared, publication, record, spec


class DeskContract:
    """Claim, renew, record, publish and release, seen from a worker."""

    def test_nothing_is_claimed_when_nothing_is_queued(self, parts: Parts) -> None:
        assert parts.desk.claim(Worker("w", ("cpu",))) is None

    def test_a_job_is_claimed_once_by_a_worker_of_its_class(self, parts: Parts) -> None:
        parts.submit()
        assert parts.desk.claim(Worker("w", ("cuda.sm90.h200",))) is None
        assert claimed(parts.desk).kind == "prepare"
        assert parts.desk.claim(Worker("w", ("cpu",))) is None

    def test_an_assignment_tells_the_worker_everything(self, parts: Parts) -> None:
        parts.submit()
        assignment = claimed(parts.desk)
        assert assignment.spec == spec().to_json()
        assert assignment.model_path == "/models/m.onnx"
        parts.desk.release(assignment.lease, prepared(parts.blobs, "conv", "gemm"))
        tune = claimed(parts.desk)
        assert tune.kind == "tune"
        assert [task["signature"] for task in tune.payload["tasks"]] == ["conv", "gemm"]
        assert tune.known == ()
        parts.desk.record(tune.lease, timings=[record("conv"), record("gemm")])
        parts.desk.release(tune.lease, Done())
        assemble = claimed(parts.desk)
        assert assemble.kind == "assemble"
        assert sorted(item["signature"] for item in assemble.known) == ["conv", "gemm"]
        assert assemble.prepared["graph_digest"] == "g" * 64

    def test_publishing_ends_the_build(self, parts: Parts) -> None:
        build = parts.submit().build
        assert build is not None
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs))
        assemble = claimed(parts.desk)
        engine = parts.desk.publish(assemble.lease, publication(parts.blobs))
        assert engine.key == build.key
        assert not parts.blobs.missing([engine.digest, engine.statement_digest])
        assert parts.desk.claim(Worker("w", ("cpu",))) is None
        assert parts.submit().engine == engine

    def test_publishing_again_answers_with_the_same_engine(self, parts: Parts) -> None:
        parts.submit()
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs))
        lease = claimed(parts.desk).lease
        first = parts.desk.publish(lease, publication(parts.blobs))
        assert parts.desk.publish(lease, publication(parts.blobs)) == first

    def test_a_blob_that_is_absent_or_damaged_is_not_published(self, parts: Parts) -> None:
        parts.submit()
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs))
        lease = claimed(parts.desk).lease
        with pytest.raises(NotFoundError):
            parts.desk.publish(lease, Publication(digest_of_bytes(b"never put"), 9, {}))
        parts.desk.publish(lease, publication(parts.blobs))

    def test_a_lease_is_prolonged(self, parts: Parts) -> None:
        parts.submit()
        lease = claimed(parts.desk).lease
        parts.clock.advance(50)
        assert parts.desk.renew(lease).until == lease.until + 50
        parts.clock.advance(50)
        assert parts.desk.expire() == 0

    @pytest.mark.parametrize("call", ["renew", "record", "release", "publish"])
    def test_a_stale_token_is_refused_everywhere(self, parts: Parts, call: str) -> None:
        parts.submit()
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, "conv"))
        parts.desk.release(claimed(parts.desk).lease, Done())
        stale = claimed(parts.desk)
        parts.clock.advance(61)
        assert parts.desk.expire() == 1
        fresh = claimed(parts.desk)
        assert (fresh.lease.job_id, fresh.lease.token) == (
            stale.lease.job_id,
            stale.lease.token + 1,
        )
        ways = {
            "renew": lambda: parts.desk.renew(stale.lease),
            "record": lambda: parts.desk.record(stale.lease, timings=[record("late")]),
            "release": lambda: parts.desk.release(stale.lease, Failed("model", "E", "late")),
            "publish": lambda: parts.desk.publish(stale.lease, publication(parts.blobs, b"late")),
        }
        with pytest.raises(LeaseLostError, match="token"):
            ways[call]()
        engine = parts.desk.publish(fresh.lease, publication(parts.blobs, b"fresh"))
        assert engine.digest == digest_of_bytes(b"fresh")
        with parts.database.reading() as rows:
            assert rows.timings.count() == 0

    def test_a_lease_that_ran_out_cannot_publish_until_it_is_renewed(self, parts: Parts) -> None:
        parts.submit()
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs))
        lease = claimed(parts.desk).lease
        parts.clock.advance(61)
        with pytest.raises(LeaseLostError, match="ran out"):
            parts.desk.publish(lease, publication(parts.blobs))
        parts.desk.renew(lease)
        parts.desk.publish(lease, publication(parts.blobs))

    def test_a_job_given_back_is_claimed_again_with_its_measurements(self, parts: Parts) -> None:
        parts.submit()
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, "conv", "gemm"))
        first = claimed(parts.desk)
        parts.desk.record(first.lease, timings=[record("conv")])
        parts.desk.release(first.lease, Returned())
        second = claimed(parts.desk)
        assert [item["signature"] for item in second.known] == ["conv"]

    def test_a_failure_of_the_model_is_final_and_remembered(self, parts: Parts) -> None:
        parts.submit()
        failure = Failed("model", "UnsupportedOperatorError", "operator Nonsense is unknown")
        parts.desk.release(claimed(parts.desk).lease, failure)
        again = parts.submit()
        assert again.answer == "known_failure"
        assert again.build is not None
        assert again.build.failure is not None
        assert again.build.failure["message"] == "operator Nonsense is unknown"
        assert parts.submit(version="next").answer == "queued"

    def test_a_build_is_forced_in_spite_of_a_failure_that_is_remembered(self, parts: Parts) -> None:
        parts.submit()
        parts.desk.release(claimed(parts.desk).lease, Failed("model", "ModelError", "no"))
        assert parts.submit(force=True).answer == "queued"

    def test_a_failure_of_the_machine_is_not_remembered(self, parts: Parts) -> None:
        parts.submit()
        parts.desk.release(
            claimed(parts.desk).lease, Failed("infrastructure", "DiskFullError", "disk is full")
        )
        assert parts.submit().answer == "queued"

    def test_a_worker_learns_at_its_renewal_that_a_build_is_cancelled(self, parts: Parts) -> None:
        build = parts.submit().build
        assert build is not None
        lease = claimed(parts.desk).lease
        assert not parts.desk.renew(lease).cancel_requested
        assert parts.submissions.cancel(build.id).state == "running"
        assert parts.desk.renew(lease).cancel_requested
        parts.desk.release(lease, Cancelled())
        with pytest.raises(SchedulerError, match="cancelled already"):
            parts.submissions.cancel(build.id)

    def test_a_cancelled_build_is_not_published(self, parts: Parts) -> None:
        build = parts.submit().build
        assert build is not None
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs))
        lease = claimed(parts.desk).lease
        parts.submissions.cancel(build.id)
        with pytest.raises(LeaseLostError, match="cancelled"):
            parts.desk.publish(lease, publication(parts.blobs))

    def test_a_record_that_makes_no_sense_is_refused_whole(self, parts: Parts) -> None:
        parts.submit()
        parts.desk.release(claimed(parts.desk).lease, prepared(parts.blobs, "conv"))
        lease = claimed(parts.desk).lease
        with pytest.raises(ValueError, match="time_ns"):
            parts.desk.record(lease, timings=[record("conv"), record("x", time_ns=-1)])
        with parts.database.reading() as rows:
            assert rows.timings.count() == 0
