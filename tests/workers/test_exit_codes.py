"""The table of exit codes: every class exists, every code is documented."""

from __future__ import annotations

import errno
import importlib
from pathlib import Path

import pytest

from workers.exit_codes import CODES_BY_CLASS, MEANINGS, ExitCode, exit_code_of
from workers.failures import sentence_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "farm.md"


@pytest.mark.parametrize("path", sorted(CODES_BY_CLASS))
def test_every_class_of_the_table_exists_and_has_its_code(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    error = found.__new__(found)
    assert exit_code_of(error) is CODES_BY_CLASS[path]


def test_every_error_of_a_room_has_a_code_other_than_unexpected() -> None:
    for room in ("engine", "storage", "scheduler"):
        module = importlib.import_module(f"{room}.errors")
        for name, found in vars(module).items():
            if isinstance(found, type) and found.__module__ == module.__name__:
                if name == "EngineError":
                    continue
                error = found.__new__(found)
                assert exit_code_of(error) is not ExitCode.UNEXPECTED, name


def test_every_code_has_a_meaning_and_stands_in_the_document() -> None:
    assert set(MEANINGS) == set(ExitCode)
    text = DOCUMENT.read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |" in text


def test_a_forbidden_write_is_a_matter_of_permission_and_a_full_disk_is_not() -> None:
    assert exit_code_of(OSError(errno.EROFS, "read-only")) is ExitCode.PERMISSION
    assert exit_code_of(OSError(errno.ENOSPC, "full")) is ExitCode.INFRASTRUCTURE
    assert exit_code_of(ZeroDivisionError()) is ExitCode.UNEXPECTED


def test_a_sentence_is_one_line() -> None:
    assert sentence_of(ValueError("first\n  second")) == "first second"
    assert sentence_of(ValueError()) == "ValueError"
    assert sentence_of(OSError(errno.ENOSPC, "x", "/some/file")).startswith("/some/file: the disk")
