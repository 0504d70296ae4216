"""Parts that the scheduler's tests share: a farm on a fake clock, and specs to build."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from scheduler.clock import FakeClock
from scheduler.desk import Assignment, Desk, Done, Publication, Worker
from scheduler.keys import BuildSpec, ModelFile, normalise_options
from scheduler.local_desk import LocalDesk
from scheduler.statements import MachineKey
from scheduler.steps import Policy
from scheduler.submissions import Request, Submissions, Submitted
from storage.blobs import BlobStore, MemoryBlobs
from storage.database import Database, open_database
from storage.digest import digest_of_bytes
from storage.records import Json

WORKER = Worker("worker-1", ("cpu",))


def spec(model: bytes = b"model", **options: object) -> BuildSpec:
    """The spec of a model with some content."""
    return BuildSpec(
        files=(ModelFile("model.onnx", digest_of_bytes(model), len(model)),),
        options=normalise_options(target="cpu", **options),  # type: ignore[arg-type]
        target={"name": "cpu", "isa": "avx2"},
        toolchain={"compiler": "test"},
        codegen=1,
    )


def record(signature: str, tactic: str = "c.direct", **changes: object) -> Json:
    """A timing record such as the engine writes."""
    fields: Json = {
        "signature": signature,
        "tactic": tactic,
        "choice": {"tile": 4},
        "point": [1],
        "target": "cpu",
        "toolchain": "test",
        "time_ns": 1000,
        "spread": 0.01,
        "samples": 20,
        "status": "ok",
    }
    return {**fields, **changes}


@dataclass
class Parts:
    """A farm whose clock stands still."""

    clock: FakeClock
    database: Database
    blobs: BlobStore
    desk: LocalDesk
    submissions: Submissions

    def submit(self, what: BuildSpec | None = None, **changes: object) -> Submitted:
        request = Request(what or spec(), "m", "/models/m.onnx", "somebody", **changes)  # type: ignore[arg-type]
        return self.submissions.submit(request)


def make_parts(folder: Path, *, policy: Policy | None = None) -> Parts:
    """A farm in a folder, with blobs in memory and ids that count."""
    clock = FakeClock()
    numbers = count(1)
    database = open_database(folder / "farm.db")
    blobs = MemoryBlobs()

    def new_id(prefix: str) -> str:
        return f"{prefix}_{next(numbers):06}"

    return Parts(
        clock=clock,
        database=database,
        blobs=blobs,
        desk=LocalDesk(
            database=database,
            blobs=blobs,
            signer=MachineKey(folder / "keys"),
            clock=clock,
            new_id=new_id,
            policy=policy,
        ),
        submissions=Submissions(database=database, blobs=blobs, clock=clock, new_id=new_id),
    )


def claimed(desk: Desk, worker: Worker = WORKER) -> Assignment:
    """The next job, which must exist."""
    assignment = desk.claim(worker)
    assert assignment is not None
    return assignment


def prepared(blobs: BlobStore, *signatures: str, graph: str = "g" * 64) -> Done:
    """How a prepare step ends that found some tasks."""
    blob = blobs.put([graph.encode()])
    return Done(
        {
            "graph_digest": graph,
            "prepared": blob.digest,
            "prepared_nbytes": blob.nbytes,
            "tasks": [{"signature": signature, "payload": {}} for signature in signatures],
        }
    )


def publication(blobs: BlobStore, content: bytes = b"engine") -> Publication:
    """An engine that lies among the blobs."""
    blob = blobs.put([content])
    return Publication(blob.digest, blob.nbytes, {"layers": 1})
