"""Run many small tasks in a few forked processes, so that a crash or a hang costs one task."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Last:
    """An answer after which its process is not fit for more; the next task gets a new one."""

    answer: Any


class Worker:
    """One process that answers one task at a time; what was loaded before the fork is shared."""

    def __init__(self, perform: Callable[[Any], Any]) -> None:
        self.connection, theirs = FORK.Pipe()
        self.process: BaseProcess = FORK.Process(
            target=_serve, args=(perform, theirs, self.connection), daemon=True
        )
        self.process.start()
        theirs.close()
        self.task: Any = None
        self.deadline = 0.0

    def give(self, task: Any, *, limit_s: float) -> None:
        self.task = task
        self.deadline = time.monotonic() + limit_s
        self.connection.send(task)

    def stop(self) -> int | None:
        """End the process; its exit code when it had ended by itself."""
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.connection.close()
        return code


def _serve(perform: Callable[[Any], Any], tasks: Connection, parents: Connection) -> None:
    parents.close()
    while True:
        try:
            task = tasks.recv()
        except EOFError:
            return
        tasks.send(perform(task))


def run(
    perform: Callable[[Any], Any], tasks: Sequence[Any], *, processes: int, limit_s: float
) -> Iterator[tuple[Any, Any, str | None]]:
    """Yield (task, answer, None) as they finish, or (task, None, reason) when one was lost.

    A task that runs longer than `limit_s`, or whose process dies, is lost with a reason and does
    not disturb the others. `perform` must not raise.
    """
    waiting = list(reversed(tasks))
    idle = [Worker(perform) for _ in range(min(processes, len(tasks)))]
    busy: dict[Connection, Worker] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                worker.give(waiting.pop(), limit_s=limit_s)
                busy[worker.connection] = worker
            first = min(worker.deadline for worker in busy.values())
            ready = wait(list(busy), timeout=max(0.0, first - time.monotonic()))
            late = [c for c, worker in busy.items() if worker.deadline < time.monotonic()]
            for connection in {*ready, *late}:
                worker = busy.pop(connection)  # type: ignore[call-overload]
                answer, reason = _collect(worker, connection in ready, limit_s)
                spent = reason is not None
                if isinstance(answer, Last):
                    worker.stop()
                    answer, spent = answer.answer, True
                yield worker.task, answer, reason
                idle.append(Worker(perform) if spent else worker)
    finally:
        for worker in [*idle, *busy.values()]:
            worker.stop()


def _collect(worker: Worker, answered: bool, limit_s: float) -> tuple[Any, str | None]:
    if not answered:
        worker.stop()
        return None, f"no answer after {limit_s:g} s"
    try:
        return worker.connection.recv(), None
    except EOFError:
        worker.process.join()
        return None, f"the process died with exit code {worker.stop()}"
