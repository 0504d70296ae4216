"""The compiler of this distribution, behind the farm's interface; imported when it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.records import Json
from workers.compiler import Description, Prepared, Report, ShouldStop


class EngineCompiler:
    """Hands each question to `engine.jobs`."""

    def describe(self, target: str) -> Description:
        """The descriptors of a target and of the toolchain that builds for it."""
        jobs = _jobs()
        toolchain = dict(jobs.toolchain(target))
        described = dict(jobs.target(target))
        if described.get("vendor") == "cuda":  # a queue of its own for each kind of GPU
            from engine.target import describe

            described["device_class"] = describe(target).device_class
        return Description(
            target=described,
            toolchain=toolchain,
            codegen=int(toolchain.pop("codegen")),
        )

    def prepare(self, model: Path, options: Json) -> Prepared:
        """Import, fuse, and list what may be measured."""
        prepared = _jobs().prepare(model, options)
        blob = prepared.blob
        return Prepared(
            graph_digest=prepared.graph_digest,
            blob=Path(blob) if isinstance(blob, str | Path) else bytes(blob),
            tasks=tuple(
                {"signature": task.signature, "payload": task.payload} for task in prepared.tasks
            ),
        )

    def tune(
        self,
        prepared: Path,
        tasks: Sequence[Json],
        known: Sequence[Json],
        *,
        report: Report,
        should_stop: ShouldStop,
    ) -> Iterator[Json]:
        """Measure the tasks on this machine's device."""
        jobs = _jobs()
        typed = [jobs.TuningTask(task["signature"], task["payload"]) for task in tasks]
        yield from jobs.tune(prepared, typed, list(known), report, should_stop)

    def assemble(self, prepared: Path, records: Sequence[Json], output: Path) -> Json:
        """Choose, plan and write the engine file."""
        report: Json = dict(_jobs().assemble(prepared, list(records), output))
        return report

    def verify(self, plan: Path, model: Path, target: str) -> Json:
        """Load the engine here and compare it with the operators' meaning."""
        found: Json = dict(_jobs().verify(plan, model, target))
        return found


def _jobs() -> Any:
    """The module `engine.jobs`."""
    import importlib

    return importlib.import_module("engine.jobs")
