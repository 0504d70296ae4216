"""Keeping a lease alive while its job runs, and learning that the work should stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scheduler.desk import Desk, Lease
from scheduler.errors import LeaseLostError
from storage.errors import StorageError
from workers.failures import BuildCancelledError

RENEW_EACH_S = 2.0
# Without a renewal for so long the lease may be another's soon; wall clocks are never compared.
FENCED_AFTER_S = 40.0


class Heartbeat:
    """Renews one lease from a thread; tells the worker why to stop."""

    def __init__(self, desk: Desk, lease: Lease, *, each_s: float = RENEW_EACH_S) -> None:
        self._desk = desk
        self._lease = lease
        self._each_s = each_s
        self._reason: Exception | None = None
        self._ended = threading.Event()

    def should_stop(self) -> bool:
        """Whether the build was cancelled or the lease is lost."""
        return self._reason is not None

    def check(self) -> None:
        """Raise BuildCancelledError or LeaseLostError when the work should stop."""
        if self._reason is not None:
            raise self._reason

    @contextmanager
    def running(self) -> Iterator[Heartbeat]:
        """Renew until the end of the block."""
        thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _beat(self) -> None:
        """Renew, until told to end or to stop."""
        renewed_at = time.monotonic()
        while self._reason is None and not self._ended.wait(self._each_s):
            try:
                standing = self._desk.renew(self._lease)
            except LeaseLostError as error:
                self._reason = error
            except StorageError as error:
                if time.monotonic() - renewed_at > FENCED_AFTER_S:
                    self._reason = LeaseLostError(f"the lease could not be renewed: {error}")
            else:
                renewed_at = time.monotonic()
                if standing.cancel_requested:
                    self._reason = BuildCancelledError("the build was cancelled")
