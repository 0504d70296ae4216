"""What the farm asks of a compiler, and which compiler answers.

The farm moves plain values only: paths, JSON and timing records. `engine` is the real compiler;
`null` computes nothing and counts everything, so that the farm can be tried without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.records import Json
from workers import settings

Report = Callable[[Json], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Description:
    """What of a target and its toolchain enters the build key."""

    target: Json
    toolchain: Json
    codegen: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model made ready: its normalised graph's digest, what to keep of it, what to measure.

    `blob` is given to `tune` and `assemble` as a file; each task has a `signature`, by which known
    records are found, and whatever else the compiler needs.
    """

    graph_digest: str
    blob: bytes | Path
    tasks: tuple[Json, ...]


class Compiler(Protocol):
    """Turns a model into an engine file in three steps, each of which may run elsewhere."""

    def describe(self, target: str) -> Description:
        """The descriptors of a target; must be cheap, since every hit asks for them."""

    def prepare(self, model: Path, options: Json) -> Prepared:
        """Import and fuse; list what may be measured. Raises errors of the model's class."""

    def tune(
        self,
        prepared: Path,
        tasks: Sequence[Json],
        known: Sequence[Json],
        *,
        report: Report,
        should_stop: ShouldStop,
    ) -> Iterator[Json]:
        """Measure what is not among the known records; yields each timing record when it is made.

        Ends early once `should_stop` answers yes.
        """

    def assemble(self, prepared: Path, records: Sequence[Json], output: Path) -> Json:
        """Choose by the records, plan and write the engine file; returns its report."""

    def verify(self, plan: Path, model: Path, target: str) -> Json:
        """Load an engine in this process, on the device that the target names, and compare it.

        It is compared with its model's meaning.
        """


def load_compiler() -> Compiler:
    """The compiler that the settings name."""
    name, _, words = settings.compiler_words().partition(":")
    if name == "engine":
        from workers.engine_compiler import EngineCompiler

        return EngineCompiler()
    if name == "null":
        from workers.null_compiler import NullCompiler, NullSettings

        return NullCompiler(NullSettings.read(words))
    raise ValueError(f"ENGINEFARM_COMPILER names {name!r}; expected 'engine' or 'null'")
