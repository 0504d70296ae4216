"""Timing records on their way into the database: checked, and given an identity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.keys import BuildSpec
from storage.digest import canonical_json, digest_of_json
from storage.records import Json, Timing

# What makes two records measurements of the same thing.
_IDENTITY = ("signature", "tactic", "choice", "point", "target", "toolchain")


def digests_of(spec: BuildSpec) -> tuple[str, str]:
    """The digests of target and toolchain under which a build's records are shared."""
    return digest_of_json(spec.target), digest_of_json([spec.toolchain, spec.codegen])


def timing_of(record: Json, *, target_digest: str, toolchain_digest: str, at: float) -> Timing:
    """The row of a record; raises ValueError naming a field that is wrong."""
    signature, tactic, status = (_text(record, name) for name in ("signature", "tactic", "status"))
    if status not in ("ok", "failed"):
        raise ValueError(f"timing record: status is {status!r}; expected 'ok' or 'failed'")
    time_ns = record.get("time_ns")
    if status == "ok" and not _is_time(time_ns):
        raise ValueError(f"timing record: time_ns is {time_ns!r}; expected a positive number")
    samples = record.get("samples", 0)
    if not isinstance(samples, int) or samples < 0:
        raise ValueError(f"timing record: samples is {samples!r}; expected a count")
    # Raises ValueError for a number that JSON lacks, which not every database could keep.
    canonical_json(record)
    named = [record.get(name) for name in _IDENTITY]
    return Timing(
        identity=digest_of_json([*named, target_digest, toolchain_digest]),
        signature=signature,
        tactic=tactic,
        status=status,
        time_ns=float(time_ns) if status == "ok" and time_ns is not None else None,
        samples=samples,
        target_digest=target_digest,
        toolchain_digest=toolchain_digest,
        record=dict(record),
        recorded_at=at,
    )


def timing_set_digest(timings: Iterable[Timing]) -> str:
    """One digest for a set of records: what an engine was chosen from."""
    return digest_of_json(
        sorted([timing.identity, digest_of_json(timing.record)] for timing in timings)
    )


def records_of(timings: Sequence[Timing]) -> tuple[Json, ...]:
    """What the engine wrote, by identity, so that every machine sees one order."""
    return tuple(timing.record for timing in sorted(timings, key=lambda item: item.identity))


def _text(record: Json, name: str) -> str:
    """A field that must be a non-empty text."""
    value = record.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"timing record: {name} is {value!r}; expected a text")
    return value


def _is_time(value: Any) -> bool:
    """Whether a value is a time that can have been measured."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
