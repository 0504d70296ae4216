"""Every error that the scheduler raises on purpose.

::

    SchedulerError
    ├── RequestError       a request that can never be built: a wrong option, a missing model file
    ├── LeaseLostError     the caller no longer holds the job: it was lost, cancelled or taken over
    ├── StateError         a move that the present state does not allow
    └── IntegrityError     a statement that does not fit its engine, or that nobody trusted signed
"""

from __future__ import annotations


class SchedulerError(Exception):
    """Any error raised on purpose by the scheduler."""


class RequestError(SchedulerError):
    """A request can never be built as it stands."""


class LeaseLostError(SchedulerError):
    """The caller no longer holds the job; whatever it made must not be published."""


class StateError(SchedulerError):
    """The present state does not allow this move."""


class IntegrityError(SchedulerError):
    """A statement does not fit its engine, or nobody who is trusted signed it."""
