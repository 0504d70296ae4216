"""Load an engine in a fresh process and compare it with its model.

`python -m workers.check_engine PLAN MODEL TARGET` prints one JSON object: the comparison, or the
error and the exit code of its class.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from storage.records import Json
from workers.compiler import load_compiler
from workers.exit_codes import ExitCode, exit_code_of
from workers.failures import InfrastructureError, ModelFailedError, sentence_of


def check_in_fresh_process(plan: Path, model: Path, target: str) -> Json:
    """Run this module on an engine and return what it found; raises what it raised, by class."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P keeps the user's folder, which may hold an `engine` of its own, out of the module path.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers.check_engine", str(plan), str(model), target],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        check=False,
        text=True,
    )
    try:
        found: Json = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise InfrastructureError(
            f"the process that checks the engine ended with status {done.returncode}: {last}"
        ) from None
    if "error_message" in found:
        message = f"the built engine was refused: {found['error_message']}"
        if found["exit_code"] == ExitCode.MODEL:
            raise ModelFailedError(message)
        raise InfrastructureError(message)
    return found


def main(arguments: list[str]) -> int:
    """Check one engine and print the result as JSON."""
    plan, model, target = arguments
    try:
        found = load_compiler().verify(Path(plan), Path(model), target)
    except Exception as error:
        code = exit_code_of(error)
        message = f"{type(error).__name__}: {sentence_of(error)}"
        print(json.dumps({"error_message": message, "exit_code": int(code)}))
        return code
    print(json.dumps(found))
    return ExitCode.SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
