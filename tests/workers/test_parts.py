"""Small parts of the workers: interrupts, heartbeats, and the choice of a compiler."""

from __future__ import annotations

import os
import signal
import time

import pytest

from scheduler.desk import Lease, Standing
from scheduler.errors import LeaseLostError
from storage.errors import LockedError
from workers.compiler import load_compiler
from workers.failures import BuildCancelledError
from workers.heartbeat import Heartbeat
from workers.interrupts import Interrupts
from workers.null_compiler import NullCompiler, NullSettings


class ScriptedDesk:
    """Answers renewals from a list, then always well."""

    def __init__(self, *answers: Standing | Exception) -> None:
        self._answers = list(answers)
        self.renewals = 0

    def renew(self, lease: Lease) -> Standing:
        self.renewals += 1
        answer = self._answers.pop(0) if self._answers else Standing(lease.until, False)
        if isinstance(answer, Exception):
            raise answer
        return answer


def beat(desk: ScriptedDesk, seconds: float = 0.2) -> Heartbeat:
    heartbeat = Heartbeat(desk, Lease("job_1", 1, 60.0), each_s=0.01)  # type: ignore[arg-type]
    with heartbeat.running():
        time.sleep(seconds)
    return heartbeat


def test_a_lease_is_renewed_while_the_work_lasts_and_no_longer() -> None:
    desk = ScriptedDesk()
    heartbeat = beat(desk)
    heartbeat.check()
    renewals = desk.renewals
    assert renewals > 2
    time.sleep(0.05)
    assert desk.renewals == renewals


def test_a_cancelled_build_stops_the_work() -> None:
    heartbeat = beat(ScriptedDesk(Standing(1.0, False), Standing(1.0, True)))
    assert heartbeat.should_stop()
    with pytest.raises(BuildCancelledError):
        heartbeat.check()


def test_a_lost_lease_stops_the_work() -> None:
    heartbeat = beat(ScriptedDesk(LeaseLostError("taken over")))
    with pytest.raises(LeaseLostError, match="taken over"):
        heartbeat.check()


def test_a_desk_that_does_not_answer_for_a_moment_is_borne(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beat(ScriptedDesk(LockedError("busy"), LockedError("busy"))).check()
    monkeypatch.setattr("workers.heartbeat.FENCED_AFTER_S", 0.0)
    with pytest.raises(LeaseLostError, match="could not be renewed"):
        beat(ScriptedDesk(LockedError("busy"))).check()


def test_an_interrupt_waits_for_the_end_of_a_shielded_part() -> None:
    interrupts = Interrupts()
    steps = []

    def work() -> None:
        with interrupts.installed(), interrupts.shielded():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["after the signal"]


def test_an_interrupt_outside_a_shielded_part_is_felt_at_once() -> None:
    interrupts = Interrupts()
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with interrupts.installed():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_null_compiler_is_chosen_and_set_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_COMPILER", "null:tasks=7,tune_s=0.5,fail=tune.bug")
    assert isinstance(load_compiler(), NullCompiler)
    assert NullSettings.read("tasks=7,tune_s=0.5") == NullSettings(tasks=7, tune_s=0.5)
    with pytest.raises(ValueError, match="no setting 'speed'"):
        NullSettings.read("speed=9")
    monkeypatch.setenv("ENGINEFARM_COMPILER", "other")
    with pytest.raises(ValueError, match="'engine' or 'null'"):
        load_compiler()
