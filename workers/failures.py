"""How a verb ends when something goes wrong: one sentence, an exit code, never a traceback."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workers import settings
from workers.exit_codes import ExitCode, exit_code_of

if TYPE_CHECKING:
    import click


class ModelFailedError(Exception):
    """A build failed for a reason in the model or the request."""


class InfrastructureError(Exception):
    """A build failed although nothing is known to be wrong with the model."""


class BuildCancelledError(Exception):
    """A build was cancelled."""


class UnreachableError(Exception):
    """A farm service was named that cannot be used."""


def run_guarded(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a click command and return the exit code, after telling the user what went wrong."""
    import click

    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = command.main(args=words, prog_name="enginefarm", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.Abort as aborted:
        # Click turns an interrupt into this; the interrupt itself may carry a sentence.
        cause = aborted.__cause__
        return _report(cause if isinstance(cause, KeyboardInterrupt) else aborted, words)
    except click.ClickException as problem:
        problem.show()
        _print_json(problem, problem.format_message(), problem.exit_code, words)
        return problem.exit_code
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell.
        sys.stderr.close()
        return ExitCode.SUCCESS
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, words)
    return outcome if isinstance(outcome, int) else ExitCode.SUCCESS


def sentence_of(error: BaseException) -> str:
    """One line that tells what an exception found, without class names or tracebacks."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if type(error).__name__ == "Abort":
        return "aborted"
    if isinstance(error, OSError) and error.strerror:
        return _operating_system_sentence(error)
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _operating_system_sentence(error: OSError) -> str:
    """Name the file and what the operating system said about it."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space and run the same command again"
    return f"{where}{str(error.strerror)[:1].lower()}{str(error.strerror)[1:]}"


def _report(error: BaseException, words: Sequence[str]) -> int:
    """Print an error for people on stderr, for programs as one JSON object on stdout."""
    if settings.wants_traceback():
        import traceback

        traceback.print_exception(error)
    code = exit_code_of(error)
    sentence = sentence_of(error)
    if code is ExitCode.UNEXPECTED:
        sentence = f"unexpected {type(error).__name__}: {sentence}"
        sentence += " (ENGINEFARM_TRACEBACK=1 shows where)"
    print(f"error: {sentence}", file=sys.stderr)
    _print_json(error, sentence, code, words)
    return code


def _print_json(error: BaseException, sentence: str, code: int, words: Sequence[str]) -> None:
    """Print an error as one JSON object on stdout when the command line asks for JSON."""
    if "--json" in words:
        fields = {"error": sentence, "class": type(error).__name__, "exit_code": int(code)}
        print(json.dumps(fields))
