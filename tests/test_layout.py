"""The house style in numbers: sizes, docstrings, names, and one test for each extension file."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx.backend.test.loader import load_node_model_tests

from engine.ops import known

ROOT = Path(__file__).parent.parent
FILE_LINES = 500
FUNCTION_LINES = 60
ROOMS = ("engine", "storage", "scheduler", "workers")
PYTHON = sorted(
    path
    for folder in (*ROOMS, "tests", "benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
TEXT = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("scripts/*"), *PYTHON)
    if path.is_file()
)
# Folders in which one file is one addition, found by its folder. Operators have a test below.
EXTENSIONS = ("engine/fusions", "engine/tactics", "engine/passes")
INTERFACES = {"engine/fusions/fusion.py", "engine/tactics/tactic.py"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "manager", "base", "impl", "common", "misc"}
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_the_limit() -> None:
    lengths = {named(p): len(p.read_text(encoding="utf-8").splitlines()) for p in PYTHON}
    long = {name: length for name, length in lengths.items() if length > FILE_LINES}
    assert not long, f"split these, each holds more than {FILE_LINES} lines: {long}"


def test_no_function_is_longer_than_the_limit() -> None:
    long = [
        f"{named(path)}:{function.lineno} {function.name}: {length} lines"
        for path in PYTHON
        for function in functions(tree(path))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_every_module_says_what_it_holds() -> None:
    sources = [path for path in PYTHON if not path.is_relative_to(ROOT / "tests")]
    silent = [named(path) for path in sources if not ast.get_docstring(tree(path))]
    assert not silent, f"these have no docstring: {silent}"


def test_no_work_is_left_as_a_note() -> None:
    found = [
        f"{named(path)}:{number}: {line.strip()}"
        for path in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_module_has_a_vague_name_or_the_name_of_a_standard_module() -> None:
    vague = [named(path) for path in PYTHON if path.stem in VAGUE_NAMES]
    assert not vague, f"name these after the one thing that they hold: {vague}"


def test_nothing_speaks_of_one_machine() -> None:
    """No path of a developer's machine: it would be wrong everywhere else."""
    private = re.compile(r"/(?:home|Users|work|root)/\w|/tmp/(?!bash)\w")
    allowed = {named(Path(__file__))}
    found = [
        f"{named(path)}:{number}: {line.strip()}"
        for path in TEXT
        if named(path) not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert not found, "\n".join(found)


def test_tests_are_no_packages() -> None:
    assert not [named(path) for path in (ROOT / "tests").rglob("__init__.py")]


def extension_files() -> list[str]:
    return [
        named(path)
        for folder in EXTENSIONS
        for path in sorted((ROOT / folder).glob("*.py"))
        if path.stem != "__init__" and named(path) not in INTERFACES
    ]


def texts_of_tests() -> dict[str, str]:
    return {
        named(path): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path != Path(__file__)
    }


TESTS = texts_of_tests()


def is_tested(extension: str) -> bool:
    """A test file has its name, imports it, or names its path."""
    module = extension.removesuffix(".py").replace("/", ".")
    package, stem = module.rsplit(".", 1)
    imports = re.compile(
        rf"\b{re.escape(module)}\b"
        rf"|from {re.escape(package)} import (?:\([^)]*|[^\n]*)\b{stem}\b"
    )
    return any(
        Path(test).stem == f"test_{stem}" or imports.search(text) or extension in text
        for test, text in TESTS.items()
    )


@pytest.mark.parametrize("extension", extension_files())
def test_every_extension_file_has_a_test(extension: str) -> None:
    path = Path(extension)
    assert is_tested(extension), (
        f"add tests/{path.parent}/test_{path.name}, or import it in the test of its family"
    )


def test_an_extension_without_a_test_would_be_noticed() -> None:
    assert not is_tested("engine/fusions/never_written.py")


def test_every_operator_is_run_by_the_backend_suite_or_named_in_a_test() -> None:
    """`tests/engine/ops/test_conformance.py` runs each operator that onnx has a case for."""
    run = {
        (node.domain, node.op_type)
        for case in load_node_model_tests()
        if case.model is not None
        for node in case.model.graph.node
    }
    texts = "\n".join(TESTS.values())
    silent = [name for domain, name in known() if (domain, name) not in run]
    silent = [name for name in silent if not re.search(rf"\b{name}\b", texts)]
    assert not silent, f"no test runs these operators: {silent}"


@pytest.mark.parametrize(
    "script", [".ci/run", "scripts/demo", "scripts/test", "scripts/core_check"]
)
def test_a_script_parses_and_can_be_run(script: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (ROOT / script).stat().st_mode & 0o100
