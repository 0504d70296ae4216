"""A compiler that computes nothing, counts everything and can be told to be slow or to fail.

It takes any file for a model. Words after `null:` in ENGINEFARM_COMPILER set the fields of
`NullSettings`, for example `null:tasks=4,tune_s=0.1,log=measured.txt`.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from storage.digest import canonical_json, digest_of_bytes
from storage.records import Json
from workers.compiler import Description, Prepared, Report, ShouldStop
from workers.failures import ModelFailedError

VENDOR = "null"
_MAGIC = "null engine 1"


@dataclass(frozen=True, slots=True)
class NullSettings:
    """How many tasks there are, how long things take (seconds), and which step fails how."""

    tasks: int = 3
    tactics: int = 2
    prepare_s: float = 0.0
    tune_s: float = 0.0
    assemble_s: float = 0.0
    fail: str = ""
    log: str = ""

    @classmethod
    def read(cls, words: str) -> NullSettings:
        """Settings from `name=value,...`; raises ValueError for an unknown name."""
        kinds: dict[str, type[Any]] = {field.name: type(field.default) for field in fields(cls)}
        values = dict(word.partition("=")[::2] for word in words.split(",") if word)
        unknown = sorted(set(values) - set(kinds))
        if unknown:
            raise ValueError(f"the null compiler has no setting {unknown[0]!r}; it has {[*kinds]}")
        return cls(**{name: kinds[name](value) for name, value in values.items()})


class NullCompiler:
    """Answers everything that the farm asks without knowing what a model is.

    The graph digest is that of the file without blanks, so that two files which differ in blanks
    alone are two exports of one graph.
    """

    def __init__(self, settings: NullSettings | None = None) -> None:
        self._settings = settings or NullSettings()

    def describe(self, target: str) -> Description:
        """A device of its own class."""
        return Description(
            target={"name": target, "device_class": target, "vendor": VENDOR},
            toolchain={"compiler": "null"},
            codegen=1,
        )

    def prepare(self, model: Path, options: Json) -> Prepared:
        """Number the tasks."""
        self._note("prepare")
        self._fail("prepare")
        time.sleep(self._settings.prepare_s)
        graph = digest_of_bytes(b"".join(model.read_bytes().split()))
        tasks = [
            {"signature": f"{graph[:12]}.{number}", "payload": {"number": number}}
            for number in range(self._settings.tasks if options.get("level", 1) else 0)
        ]
        return Prepared(graph, canonical_json({"graph": graph}), tuple(tasks))

    def tune(
        self,
        prepared: Path,
        tasks: Sequence[Json],
        known: Sequence[Json],
        *,
        report: Report,
        should_stop: ShouldStop,
    ) -> Iterator[Json]:
        """Make up a time for each tactic of each task that has none yet."""
        self._fail("tune")
        measured = {(record["signature"], record["tactic"]) for record in known}
        for done, task in enumerate(tasks):
            report({"done": done, "total": len(tasks), "signature": task["signature"]})
            for number in range(self._settings.tactics):
                if should_stop():
                    return
                tactic = f"null.{number}"
                if (task["signature"], tactic) not in measured:
                    yield self._measure(task["signature"], tactic)

    def assemble(self, prepared: Path, records: Sequence[Json], output: Path) -> Json:
        """Write the best tactic of each signature."""
        self._note("assemble")
        time.sleep(self._settings.assemble_s)
        self._fail("assemble")
        best: dict[str, tuple[float, str]] = {}
        for record in records:
            found = (record["time_ns"], record["tactic"])
            best[record["signature"]] = min(best.get(record["signature"], found), found)
        tactics = {signature: tactic for signature, (_, tactic) in sorted(best.items())}
        graph = json.loads(prepared.read_bytes())["graph"]
        output.write_bytes(canonical_json({"magic": _MAGIC, "graph": graph, "tactics": tactics}))
        return {"layers": len(tactics), "tactics": tactics, "arena_nbytes": 0, "requires": []}

    def verify(self, plan: Path, model: Path, target: str) -> Json:
        """Check that the plan is one of ours and was made from this model."""
        self._note("verify")
        self._fail("verify")
        fields_of_plan = json.loads(plan.read_bytes())
        graph = digest_of_bytes(b"".join(model.read_bytes().split()))
        if fields_of_plan["magic"] != _MAGIC or fields_of_plan["graph"] != graph:
            raise ModelFailedError(f"{plan} was not made from {model}")
        return {"error": 0.0}

    def _measure(self, signature: str, tactic: str) -> Json:
        """One timing record, the same each time it is asked for."""
        self._note(f"measure {signature} {tactic}")
        time.sleep(self._settings.tune_s)
        noise = int(digest_of_bytes(f"{signature}{tactic}".encode())[:6], 16)
        return {
            "signature": signature,
            "tactic": tactic,
            "choice": "",
            "point": "",
            "target": "null",
            "toolchain": "null",
            "time_ns": 1000 + noise,
            "spread": 0.01,
            "samples": 20,
            "status": "ok",
        }

    def _note(self, line: str) -> None:
        """Count what was asked for, in one write so that processes do not mix their lines."""
        if self._settings.log:
            descriptor = os.open(self._settings.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{line}\n".encode())
            os.close(descriptor)

    def _fail(self, step: str) -> None:
        """Fail if told to: `fail=<step>.<model|disk|bug>`."""
        if self._settings.fail == f"{step}.model":
            raise ModelFailedError("operator Nonsense of domain '' version 1 is unknown")
        if self._settings.fail == f"{step}.disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._settings.fail == f"{step}.bug":
            raise AssertionError("a mistake in the compiler")
