"""What README.md and docs/ claim: quotations, links, commands, tables, the list of operators."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import onnx
import pytest

from engine.ops import known
from engine.ops.exclusions import EXCLUSIONS
from scripts import operators, readme_tables
from workers.cli import VERBS, command_line
from workers.exit_codes import exit_code_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDING = ROOT / "docs" / "adding.md"
FENCE = re.compile(r"^```(\w+)(?: ([\w./]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Paths of the repository as pages write them, in backquotes; patterns and generated files aside.
PATH = re.compile(r"`((?:engine|storage|scheduler|workers|tests|benchmarks|docs|scripts)/[\w./]+)`")


def quotations() -> list[tuple[str, str]]:
    """File and text of every quoted block of docs/adding.md."""
    found = FENCE.findall(ADDING.read_text(encoding="utf-8"))
    return [(path, text) for _, path, text in found if path]


def absent(quoted: str, source: str) -> str | None:
    """The first run of quoted lines that the source lacks; "..." stands between runs."""
    rest = f"\n{source}"
    for run in re.split(r"^ *\.\.\.\n", quoted, flags=re.MULTILINE):
        _, found, rest = rest.partition(f"\n{run}")
        if not found:
            return run
        rest = f"\n{rest}"
    return None


@pytest.mark.parametrize(("path", "text"), quotations())
def test_quoted_lines_stand_in_their_file(path: str, text: str) -> None:
    missing = absent(text, (ROOT / path).read_text(encoding="utf-8"))
    assert missing is None, f"{path} does not hold, in this order:\n{missing}"


def test_a_line_that_was_never_written_would_be_noticed() -> None:
    source = (ROOT / "engine/ops/det.py").read_text(encoding="utf-8")
    assert absent("class Det(Operator):\n...\n    pass\n", source) == "    pass\n"
    assert absent("class Det(Operator):\n    pass\n", source) is not None


def test_every_kind_of_addition_is_shown_on_a_file() -> None:
    shown = {str(Path(path).parent) for path, _ in quotations()}
    folders = ("ops", "fusions", "tactics", "kernels", "passes", "plan")
    assert shown >= {f"engine/{folder}" for folder in folders} | {"workers/cli"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    made = {"benchmarks/results/backend_suite.json"}
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not set(missing) - made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_options_exist(page: Path) -> None:
    """Every `enginefarm VERB --option` of a page, in blocks and in backquotes."""
    context = click.Context(command_line)
    for line in re.findall(r"\benginefarm ([a-z][^\n`]*)", shell_parts(page)):
        verb, *rest = line.split("#")[0].split()
        assert verb in VERBS, f"{page.name} speaks of the verb {verb!r}"
        command = command_line.get_command(context, verb)
        assert command is not None
        options = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
        options |= {"-h", "--help"}
        if isinstance(command, click.Group):
            continue
        words = [word.partition("=")[0] for word in rest]
        given = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        assert given <= options, f"{page.name}: enginefarm {verb} has no {given - options}"


def shell_parts(page: Path) -> str:
    """Shell blocks and what stands in backquotes."""
    text = page.read_text(encoding="utf-8")
    blocks = [body for language, _, body in FENCE.findall(text) if language == "sh"]
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))])


@pytest.mark.parametrize("room", ["engine", "storage", "scheduler"])
def test_every_error_is_listed_with_its_exit_code(room: str) -> None:
    module = importlib.import_module(f"{room}.errors")
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d*) ?\|$", text, re.MULTILINE))
    classes = [c for c in vars(module).values() if isinstance(c, type)]
    assert len(classes) > 4
    for error in classes:
        code = exit_code_of(BaseException.__new__(error)).value
        assert listed.get(error.__name__) == ("" if error.__name__ == "EngineError" else str(code))


def suite_apart(page: str) -> str:
    return page.partition(operators.SUITE_HEADING)[0].rstrip()


def test_the_list_of_operators_is_up_to_date() -> None:
    written = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    if f"onnx {onnx.__version__};" not in written:
        pytest.skip(f"docs/operators.md was written from another onnx than {onnx.__version__}")
    made = operators.page(operators.try_out())
    assert suite_apart(written) == suite_apart(made), "run python -m scripts.operators"


def test_every_operator_with_a_kernel_in_onnxruntime_has_a_meaning_here() -> None:
    pytest.importorskip("onnxruntime")
    standard = {
        (schema.domain, schema.name)
        for schema in onnx.defs.get_all_schemas_with_history()
        if not schema.deprecated
    }
    kernels = operators.onnxruntime_kernels() & standard
    assert len(kernels) > 150
    assert not kernels - set(known()), "onnxruntime runs these, and no class here means them"
    assert not kernels & set(EXCLUSIONS)


def test_failing_cases_are_listed_with_their_reason() -> None:
    reason = "AssertionError: 1 | 2 <3>"
    failure = {"kind": "node", "without_reference": reason, "with_reference": None}
    result = {
        "onnx": "1",
        "cases": 2,
        "passed": 2,
        "passed_without_reference": 1,
        "failures": {"test_odd": failure},
    }
    line = operators.suite_section(result).splitlines()[-1]
    assert line == "| test_odd | node | passes | AssertionError: 1 \\| 2 &lt;3> |"
    whole = operators.suite_section({**result, "failures": {}})
    assert "test_odd" not in whole and "2 pass" in whole


def results() -> dict[str, Any]:
    """Results in the form of the three benchmarks, small."""
    surroundings = {
        "commit": "abc",
        "versions": {"onnxruntime": "1.32.0"},
        "machine": "2 cores, AVX-512",
        "load": 0.1,
    }
    row = {
        "model": "resnet50",
        "error": 2e-6,
        "engine_seconds": 0.0205,
        "onnxruntime_seconds": 0.0246,
        "ratio": 1.2,
        "arena_ratio": 1.0,
    }
    networks = {**surroundings, "threads": 2, "rounds": 7, "rows": [row], "geometric_mean": 1.2}
    measured = [{"name": "import engine", "value": 0.05, "unit": "s", "most": 0.2}]
    idea = {
        "idea": "Winograd",
        "model": "vgg19",
        "seconds": 0.1,
        "without_seconds": 0.2,
        "gain": 2.0,
    }
    totals = {"cases": 3, "passed": 2, "passed_without_reference": 1}
    return {
        "networks": [{**networks, "rows": []}, networks],
        "start_up": [{**surroundings, "load": 3.5, "measured": measured}],
        "ablations": [{**surroundings, "threads": 2, "rounds": 7, "rows": [idea]}],
        "backend_suite": {"onnx": "1.23.2", **totals, "kinds": {"node": totals}, "failures": {}},
    }


def test_tables_show_the_latest_results_and_nothing_else(tmp_path: Path) -> None:
    assert readme_tables.tables(tmp_path) == ""
    for name, result in results().items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    text = readme_tables.tables(tmp_path)
    assert "| resnet50 | 20.50 ms | 24.60 ms | 1.20 | 2.0e-06 | 1.000 |" in text
    assert "| import engine | 0.05 s | 0.2 s |" in text
    assert "| node | 3 | 2 | 1 |" in text
    ideas = readme_tables.sections(tmp_path)[readme_tables.PERFORMANCE]
    assert "| Winograd | vgg19 | 100.0 ms | 200.0 ms | 2.00 |" in ideas
    assert text.count("other work was under way (load 3.5)") == 1
    (tmp_path / "networks.json").unlink()
    assert "onnxruntime" not in readme_tables.tables(tmp_path)


def test_tables_replace_only_the_marked_section() -> None:
    readme = f"before\n{readme_tables.BEGIN}\nold\n{readme_tables.END}\nafter\n"
    full = readme_tables.filled(readme, "new")
    assert "old" not in full and "new" in full
    assert full.startswith("before\n") and full.endswith("\nafter\n")
    assert readme_tables.filled(full, "new") == full
    with pytest.raises(ValueError, match="must hold"):
        readme_tables.filled("no marks", "new")


@pytest.mark.parametrize("page", [readme_tables.README, readme_tables.PERFORMANCE])
def test_the_numbers_of_a_page_are_the_latest(page: Path) -> None:
    present = page.read_text(encoding="utf-8")
    text = readme_tables.sections(readme_tables.RESULTS)[page]
    assert present == readme_tables.filled(present, text), "run python -m scripts.readme_tables"


@pytest.mark.slow
def test_the_five_minutes_of_the_readme_work_as_typed(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Five minutes")[2]
    blocks = FENCE.findall(text.partition("\n## ")[0])
    shell = "".join(body for language, _, body in blocks if language == "sh")
    python = "".join(body for language, _, body in blocks if language == "python")
    assert "enginefarm build" in shell and "engine.load" in python
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / ".local" / "share"),
        "XDG_CACHE_HOME": str(tmp_path / ".cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for name in ("ENGINEFARM_HOME", "ENGINEFARM_CACHE"):
        environment.pop(name, None)
    script = shell.replace("source .venv/bin/activate", "enginefarm demo")
    (tmp_path / "shufflenet").mkdir()
    for command in (["bash", "-euo", "pipefail", "-c", script], [sys.executable, "-c", python]):
        done = subprocess.run(
            command,
            cwd=tmp_path / "shufflenet",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
