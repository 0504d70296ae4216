"""Timing an engine, alone or in turns with a peer, and what the times come to."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from engine.runtime.engine import Engine

__all__ = [
    "Length",
    "Span",
    "Summary",
    "run_for",
    "summary_of",
    "take_turns",
    "time_contexts",
    "together",
]

Call = Callable[[], object]
T = TypeVar("T")

#: Seconds in which the threads of the one before stop to spin.
REST = 0.05


@dataclass(frozen=True, slots=True)
class Length:
    """How long to measure: a number of runs, or seconds; runs before it that do not count."""

    iterations: int | None = None
    seconds: float = 3.0
    warmup: int = 3


@dataclass(frozen=True, slots=True)
class Span:
    """What one thread measured: times in seconds, and when it began and ended."""

    times: Sequence[float]
    began: float
    ended: float


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


def run_for(call: Call, length: Length) -> Span:
    """Latencies of runs one after the other; at least one."""
    times: list[float] = []
    start = time.perf_counter()
    while True:
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        times.append(ended - began)
        late = ended >= start + length.seconds
        if len(times) >= length.iterations if length.iterations is not None else late:
            return Span(times, start, ended)


def together(count: int, work: Callable[[Call], T]) -> list[T]:
    """Do the same work in so many threads; what it is given waits until all have called it.

    Raises what the first failing thread raised, after all have ended.
    """
    found: list[T] = []
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run() -> None:
        try:
            found.append(work(barrier.wait))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


def summary_of(spans: Sequence[Span]) -> Summary:
    """The summary of what several threads measured at the same time."""
    wall = max(span.ended for span in spans) - min(span.began for span in spans)
    return Summary.of([item for span in spans for item in span.times], wall)


def time_contexts(
    engine: Engine, feeds: Mapping[str, Any], length: Length, contexts: int
) -> Summary:
    """Latencies of an engine in so many contexts at once, each in a thread of its own."""

    def work(ready: Call) -> Span:
        with engine.create_context() as context:
            for _ in range(length.warmup):
                context.run(feeds)
            ready()
            return run_for(lambda: context.run(feeds), length)

    return summary_of(together(contexts, work))


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
            medians[place].append(statistics.median(run_for(calls[place], share).times))
    return medians
