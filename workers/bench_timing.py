"""Timing an engine, alone or in turns with a peer, and what the times come to."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.runtime.engine import Engine

__all__ = ["Length", "Summary", "take_turns", "time_contexts"]

Call = Callable[[], object]

#: Seconds in which the threads of the one before stop to spin.
REST = 0.05


@dataclass(frozen=True, slots=True)
class Length:
    """How long to measure: a number of runs, or seconds; runs before it that do not count."""

    iterations: int | None = None
    seconds: float = 3.0
    warmup: int = 3


@dataclass(frozen=True, slots=True)
class Summary:
    """Latencies in seconds, from so many runs, and runs in a second of wall time."""

    runs: int
    least: float
    median: float
    p90: float
    p99: float
    mean: float
    per_second: float

    @classmethod
    def of(cls, times: Sequence[float], wall: float) -> Summary:
        """The summary of some latencies that took ``wall`` seconds in all."""
        ordered = sorted(times)
        return cls(
            runs=len(ordered),
            least=ordered[0],
            median=statistics.median(ordered),
            p90=quantile(ordered, 0.9),
            p99=quantile(ordered, 0.99),
            mean=statistics.fmean(ordered),
            per_second=len(ordered) / wall,
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ordered values lie, between neighbours by weight."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _run_for(call: Call, length: Length) -> list[float]:
    """Latencies of runs one after the other; at least one."""
    times: list[float] = []
    ends = time.perf_counter() + length.seconds
    while True:
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        times.append(ended - began)
        if len(times) >= length.iterations if length.iterations is not None else ended >= ends:
            return times


def time_contexts(
    engine: Engine, feeds: Mapping[str, Any], length: Length, contexts: int
) -> Summary:
    """Latencies of an engine in so many contexts at once, each in a thread of its own."""
    collected: list[list[float]] = []
    failures: list[BaseException] = []
    ready = threading.Barrier(contexts + 1)

    def work() -> None:
        try:
            with engine.create_context() as context:
                for _ in range(length.warmup):
                    context.run(feeds)
                ready.wait()
                collected.append(_run_for(lambda: context.run(feeds), length))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(contexts)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        for thread in threads:
            thread.join()
        raise failures[0] from None
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    if failures:
        raise failures[0]
    return Summary.of([item for times in collected for item in times], wall)


def take_turns(calls: Sequence[Call], rounds: int, length: Length) -> list[list[float]]:
    """The median latency of each call in each round.

    Every round runs each call for its share of the time, in turns that begin with another one each
    round, so that what slows the machine down for a while slows all of them down.
    """
    medians: list[list[float]] = [[] for _ in calls]
    share = Length(
        None if length.iterations is None else max(1, length.iterations // rounds),
        length.seconds / rounds / len(calls),
        0,
    )
    for call in calls:
        for _ in range(length.warmup):
            call()
    for turn in range(rounds):
        for index in range(len(calls)):
            place = (index + turn) % len(calls)
            time.sleep(REST)
            calls[place]()  # brings its weights back into the caches
            medians[place].append(statistics.median(_run_for(calls[place], share)))
    return medians
