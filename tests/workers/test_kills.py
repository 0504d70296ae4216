"""A build killed at random moments, again and again, ends as one whole engine."""

from __future__ import annotations

import json
import random
import time

import pytest

from storage.blobs import read_blob
from storage.digest import digest_of_bytes
from tests.workers.conftest import CommandLine

SLOW = "tasks=4,prepare_s=0.2,tune_s=0.1,assemble_s=0.2"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_moment_it_is_killed_a_build_ends_whole(
    enginefarm: CommandLine, seed: int
) -> None:
    moments = random.Random(seed)
    model = enginefarm.model()
    for _ in range(6):
        process = enginefarm.start("build", model, null=SLOW)
        time.sleep(moments.uniform(0.2, 2.0))
        process.kill()
        process.communicate()
    process = enginefarm.start("build", model, null=SLOW)
    _, err = process.communicate(timeout=60)
    # Only a step that lost four workers without getting on is given up, and then begun anew.
    assert process.returncode == 0 or "4 workers were lost" in err
    built = enginefarm.json("build", model, null=SLOW)
    with enginefarm.farm().database.reading() as rows:
        engines = rows.engines.newest()
        builds = rows.builds.newest()
        for build in builds:
            numbers = [event.number for event in rows.builds.events(build.id)]
            assert numbers == list(range(1, len(numbers) + 1))
    assert [engine.digest for engine in engines] == [built["digest"]]
    assert digest_of_bytes(read_blob(enginefarm.home.blobs, built["digest"])) == built["digest"]
    # Records are committed each second, so each kill may cost one second of measuring.
    assert len(enginefarm.lines("measure")) <= 8 + 6 * 10
    enginefarm.run("gc", "--grace-hours", "0")
    assert not [path for path in enginefarm.home.folder.rglob("*.part") if path.is_file()]
    assert enginefarm.json("build", model)["answer"] == "hit"


def test_who_waits_sees_how_the_builder_gets_on(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    builder = enginefarm.start("build", model, "--json", null="tune_s=0.3,tasks=4")
    enginefarm.wait_until(lambda: len(enginefarm.lines("measure")) >= 2)
    out, _ = enginefarm.run("logs", "-f", "--json", enginefarm.run("ls", "-q")[0].strip())
    events = [json.loads(line) for line in out.splitlines()]
    done = [event["data"]["done"] for event in events if event["kind"] == "progress"]
    assert done == sorted(done)
    assert len(done) >= 2
    assert events[-1]["kind"] == "done"
    assert json.loads(builder.communicate(timeout=30)[0])["answer"] == "built"
