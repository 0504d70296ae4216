"""The desk: all that a worker may ask of the farm, in five methods.

Workers never open the database. On one machine the desk is `scheduler.local_desk.LocalDesk`; a
service offers the same over HTTP. Every call after `claim` shows the lease: a fencing token that
grows with each claim, so that a worker which was given up cannot touch what its successor does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage.records import Engine, Json


@dataclass(frozen=True, slots=True)
class Worker:
    """Who asks for work, and for which device classes."""

    name: str
    device_classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job until a time, under a fencing token."""

    job_id: str
    token: int
    until: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """A claimed job with everything that its worker needs to know.

    `prepared` is the result of the build's prepare step, `known` the timing records that exist for
    its signatures (for tune and assemble).
    """

    lease: Lease
    build_id: str
    kind: str
    spec: Json
    model_path: str | None
    payload: Json
    prepared: Json
    known: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a renewal answers: the new end of the lease, and whether to stop."""

    until: float
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Publication:
    """An engine that lies among the blobs, was loaded in a fresh process and compared."""

    digest: str
    nbytes: int
    report: Json


@dataclass(frozen=True, slots=True)
class Done:
    """A prepare or tune step ended well."""

    result: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """A step failed: `kind` is `model` or `infrastructure`, `version` that of the worker."""

    kind: str
    error_class: str
    message: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """A worker gives a job back unfinished, without blame."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A worker stopped because the desk told it that the build is cancelled."""


Outcome = Done | Failed | Returned | Cancelled


class Desk(Protocol):
    """What a worker may ask. Every method may raise LeaseLostError except `claim`."""

    def claim(self, worker: Worker, *, build_id: str | None = None) -> Assignment | None:
        """The best queued job that the worker's devices fit, now leased to it, or None."""

    def renew(self, lease: Lease) -> Standing:
        """Prolong a lease."""

    def record(
        self, lease: Lease, *, timings: Sequence[Json] = (), events: Sequence[Json] = ()
    ) -> None:
        """Keep measurements and tell about progress; an event is {"kind": ..., "data": {...}}."""

    def publish(self, lease: Lease, publication: Publication) -> Engine:
        """Publish the engine of an assemble job and end its build, in one transaction."""

    def release(self, lease: Lease, outcome: Outcome) -> None:
        """End an attempt; the transaction that ends the last open step inserts the next."""
