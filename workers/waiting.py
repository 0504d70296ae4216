"""Waiting for a build, which in the embedded farm means building it, or taking over.

A file lock per key proves its holder alive: the operating system drops it the moment the holder
dies. Whoever waits tries the lock a few times a second. Who gets it takes back the jobs that the
dead holder had claimed and goes on where it stopped.
"""

from __future__ import annotations

import shutil
import time

from filelock import FileLock, Timeout

from scheduler.keys import BuildSpec
from scheduler.model_files import DigestCache
from scheduler.states import is_terminal
from storage.disk import disk_errors
from storage.records import Build
from workers import settings
from workers.compiler import Compiler
from workers.farm import Farm
from workers.home import lock_path
from workers.interrupts import Interrupts
from workers.job_runner import JobRunner
from workers.progress import Progress

POLL_S = 0.2


class Waiter:
    """Waits for one build in this process.

    `has_worked` tells whether this process itself ran any of the build's jobs.
    """

    def __init__(self, farm: Farm, build: Build, compiler: Compiler, progress: Progress) -> None:
        self._farm = farm
        self._build = build
        self._spec = BuildSpec.from_json(build.spec)
        self._progress = progress
        self._seen = 0
        self.has_worked = False
        self._interrupts = Interrupts()
        self._work = farm.home.work
        self._runner = JobRunner(
            desk=farm.desk,
            blobs=farm.home.blobs,
            compiler=compiler,
            work=self._work,
            digests=DigestCache(settings.cache_folder() / "digests"),
            interrupts=self._interrupts,
            on_event=progress.show,
        )

    @property
    def last_error(self) -> Exception | None:
        """What this process itself met last while it built."""
        return self._runner.last_error

    def wait(self) -> Build:
        """Build, or wait for who builds, until the build has ended; returns it as it ended.

        Raises KeyboardInterrupt once the job at hand has been given back.
        """
        path = lock_path(self._farm.home, self._spec)
        with disk_errors(str(path.parent)):
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        with self._interrupts.installed():
            while True:
                build = self._farm.build(self._build.id)
                if is_terminal(build.state):
                    self._clean(build)
                    return build
                self._turn(lock)

    def _turn(self, lock: FileLock) -> None:
        """Work when nobody else does; else look on for a moment."""
        if not _is_acquired(lock):
            self._look_on()
            return
        try:
            self._farm.desk.abandon(self._build.id)
            self._work_until_nothing_is_left()
        finally:
            lock.release()

    def _work_until_nothing_is_left(self) -> None:
        """Claim and run the build's jobs one after the other."""
        worker = self._farm.worker(self._spec)
        claimed = False
        while True:
            with self._interrupts.shielded():
                assignment = self._farm.desk.claim(worker, build_id=self._build.id)
            if assignment is None:
                break
            claimed = self.has_worked = True
            self._runner.run(assignment)
        if not claimed:
            time.sleep(POLL_S)

    def _look_on(self) -> None:
        """Show what the builder reported since the last look."""
        for event in self._farm.events(self._build.id, after=self._seen):
            self._seen = event.number
            self._progress.show(event.kind, event.data)
        time.sleep(POLL_S)

    def _clean(self, build: Build) -> None:
        """Remove the work folder of a build that has ended."""
        shutil.rmtree(self._work / build.id, ignore_errors=True)


def take_back_from_the_dead(farm: Farm, build: Build) -> None:
    """Take back the jobs of a build whose holder died, when nobody holds its lock."""
    path = lock_path(farm.home, BuildSpec.from_json(build.spec))
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    if _is_acquired(lock):
        try:
            farm.desk.abandon(build.id)
        finally:
            lock.release()


def _is_acquired(lock: FileLock) -> bool:
    """Take a lock if nobody holds it."""
    with disk_errors(lock.lock_file):
        # The time-out is an OSError too, but says nothing about the disk.
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
    return True
