"""The exit codes of every verb, and which exception class ends with which code."""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """What the end of an `enginefarm` process means; stable, documented, tested."""

    SUCCESS = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    PERMISSION = 4
    CONFLICT = 5
    QUOTA = 6
    MODEL = 7
    INFRASTRUCTURE = 8
    INTEGRITY = 9
    CANCELLED = 10
    UNREACHABLE = 11
    TIMEOUT = 124
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.SUCCESS: "success",
    ExitCode.UNEXPECTED: "unexpected error in the tool",
    ExitCode.USAGE: "usage error",
    ExitCode.NOT_FOUND: "not found, or no compatible engine",
    ExitCode.PERMISSION: "authentication or permission",
    ExitCode.CONFLICT: "conflict or precondition: already exists, wrong state, schema mismatch",
    ExitCode.QUOTA: "quota or rate limit",
    ExitCode.MODEL: "failed for a reason in the model or the request: trying again will not help",
    ExitCode.INFRASTRUCTURE: "infrastructure failure: trying again may help",
    ExitCode.INTEGRITY: "integrity or signature failure",
    ExitCode.CANCELLED: "cancelled",
    ExitCode.UNREACHABLE: "service unreachable",
    ExitCode.TIMEOUT: "the time limit ended while the build still runs",
    ExitCode.INTERRUPTED: "interrupted; the build is left to be resumed",
}

# Class names rather than classes, so that looking up a code imports no room. Each class is found
# through the exception's own ancestors, the nearest first.
CODES_BY_CLASS: dict[str, ExitCode] = {
    "storage.errors.NotFoundError": ExitCode.NOT_FOUND,
    "storage.errors.ReadOnlyError": ExitCode.PERMISSION,
    "storage.errors.ConflictError": ExitCode.CONFLICT,
    "storage.errors.NewerSchemaError": ExitCode.CONFLICT,
    "storage.errors.CorruptError": ExitCode.INTEGRITY,
    "storage.errors.StorageError": ExitCode.INFRASTRUCTURE,
    "scheduler.errors.RequestError": ExitCode.MODEL,
    "scheduler.errors.IntegrityError": ExitCode.INTEGRITY,
    "scheduler.errors.LeaseLostError": ExitCode.INFRASTRUCTURE,
    "scheduler.errors.SchedulerError": ExitCode.CONFLICT,
    "engine.errors.ModelError": ExitCode.MODEL,
    "engine.errors.OptionError": ExitCode.MODEL,
    "engine.errors.FeedError": ExitCode.USAGE,
    "engine.errors.PlanCorruptError": ExitCode.INTEGRITY,
    "engine.errors.PlanVersionError": ExitCode.CONFLICT,
    "engine.errors.TargetMismatchError": ExitCode.NOT_FOUND,
    "engine.errors.PlanError": ExitCode.INTEGRITY,
    "engine.errors.KernelError": ExitCode.INFRASTRUCTURE,
    "engine.errors.DeviceError": ExitCode.INFRASTRUCTURE,
    "engine.errors.MissingExtraError": ExitCode.CONFLICT,
    "workers.failures.ModelFailedError": ExitCode.MODEL,
    "workers.failures.InfrastructureError": ExitCode.INFRASTRUCTURE,
    "workers.failures.BuildCancelledError": ExitCode.CANCELLED,
    "workers.failures.UnreachableError": ExitCode.UNREACHABLE,
    "builtins.FileNotFoundError": ExitCode.NOT_FOUND,
    "builtins.PermissionError": ExitCode.PERMISSION,
    "builtins.KeyboardInterrupt": ExitCode.INTERRUPTED,
    "click.exceptions.Abort": ExitCode.INTERRUPTED,
    "builtins.MemoryError": ExitCode.INFRASTRUCTURE,
    "builtins.OSError": ExitCode.INFRASTRUCTURE,
}


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of an exception, by its nearest ancestor in the table."""
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ExitCode.PERMISSION
    for ancestor in type(error).__mro__:
        code = CODES_BY_CLASS.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if code is not None:
            return code
    return ExitCode.UNEXPECTED
