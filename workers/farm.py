"""The embedded farm, wired: database, blobs, submissions and desk of one folder."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from scheduler.clock import Clock, SystemClock
from scheduler.desk import Worker
from scheduler.keys import BuildSpec
from scheduler.local_desk import LocalDesk
from scheduler.statements import MachineKey
from scheduler.steps import Policy, device_class_of
from scheduler.submissions import Submissions
from storage.database import Database, open_database
from storage.records import Build, Engine, Event
from workers.home import Home


@dataclass(frozen=True, slots=True)
class Farm:
    """The parts of an embedded farm."""

    home: Home
    database: Database
    submissions: Submissions
    desk: LocalDesk

    def build(self, build_id: str) -> Build:
        """A build as it stands now."""
        with self.database.reading() as rows:
            return rows.builds.get(build_id)

    def events(self, build_id: str, *, after: int = 0) -> list[Event]:
        """What has happened to a build since an event."""
        with self.database.reading() as rows:
            return rows.builds.events(build_id, after=after)

    def engine(self, key: str) -> Engine | None:
        """The current engine of a key."""
        with self.database.reading() as rows:
            return rows.engines.current(key)

    def worker(self, spec: BuildSpec) -> Worker:
        """The present process as a worker for a build's device class."""
        name = f"{socket.gethostname()}:{os.getpid()}"
        return Worker(name=name, device_classes=(device_class_of(spec.target),))


# One machine measures one thing at a time, so its shards need not be small.
EMBEDDED_POLICY = Policy(tasks_per_shard=4096)


def open_farm(home: Home, *, clock: Clock | None = None, policy: Policy | None = None) -> Farm:
    """Open, and make when needed, the farm in a folder."""
    ticking = clock or SystemClock()
    database = open_database(home.database)
    blobs = home.blobs
    return Farm(
        home=home,
        database=database,
        submissions=Submissions(database=database, blobs=blobs, clock=ticking),
        desk=LocalDesk(
            database=database,
            blobs=blobs,
            signer=MachineKey(home.keys),
            clock=ticking,
            policy=policy or EMBEDDED_POLICY,
        ),
    )
