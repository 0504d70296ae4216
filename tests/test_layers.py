"""Imports flow one way: between rooms, inside the engine, and to third-party packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "engine": {"engine"},
    "storage": {"storage"},
    "scheduler": {"scheduler", "storage"},
    "workers": {"workers", "scheduler", "storage", "engine"},
}

TYPES = {"engine.errors", "engine.plugins", "engine.ir.types", "engine.ir.sizes"}
# The printer for C with its compiler, and the meanings that it prints.
KERNELS = {"engine.ops", "engine.kernels", "engine.kernels.isa", "engine.runtime.compilation"}
# Part of the engine -> parts that it may import beside itself. The longest prefix of a module's
# name says which part it belongs to, and likewise for what it imports.
PARTS: dict[str, set[str]] = {
    "engine.errors": set(),
    "engine.plugins": {"engine.errors"},
    "engine.ir.types": TYPES,
    "engine.ir.sizes": TYPES,
    "engine.ops": TYPES,
    "engine.ir": TYPES | {"engine.ops"},
    "engine.onnx_io": TYPES | {"engine.ops", "engine.ir"},
    "engine.fusions": TYPES | {"engine.ops", "engine.ir", "engine.passes"},
    "engine.passes": TYPES | {"engine.ops", "engine.ir", "engine.fusions"},
    "engine.kernels.isa": TYPES,
    "engine.runtime.compilation": TYPES | {"engine.kernels.isa"},
    "engine.kernels": TYPES | {"engine.ops", "engine.kernels.isa", "engine.runtime.compilation"},
    "engine.plan": TYPES | KERNELS,
    "engine.templates": TYPES | {"engine.ops", "engine.plan", "engine.cuda", "engine.target"},
    "engine.cuda": TYPES
    | {"engine.ops", "engine.plan", "engine.target", "engine.templates"}
    | {"engine.runtime.compilation"},
    "engine.profile": TYPES | {"engine.ir", "engine.plan"},
    "engine.target": TYPES | KERNELS | {"engine.plan", "engine.cuda"},
    "engine.runtime": TYPES | KERNELS | {"engine.plan", "engine.cuda", "engine.target"},
    "engine.lower.placement": TYPES | {"engine.ops", "engine.ir"},
    "engine.lower.builder": TYPES
    | KERNELS
    | {"engine.ir", "engine.passes", "engine.plan", "engine.lower.placement", "engine.cuda"},
    "engine.tactics": TYPES
    | KERNELS
    | {"engine.ir", "engine.passes", "engine.plan", "engine.lower.builder"}
    | {"engine.lower.placement", "engine.cuda", "engine.target", "engine.templates"},
    "engine.lower": TYPES
    | KERNELS
    | {"engine.ir", "engine.passes", "engine.plan", "engine.lower.builder", "engine.tactics"}
    | {"engine.lower.placement", "engine.cuda"},
}
# Not listed above, hence free inside the engine: the entry points, tuning and debugging.
FREE = {"engine", "engine.building", "engine.loading", "engine.tune", "engine.debug"}

# Third-party package -> modules (and what lies in them) that may import it.
THIRD_PARTY = {
    "numpy": ("engine", "workers", "scheduler"),
    "ml_dtypes": ("engine", "workers"),
    "onnx": ("engine.onnx_io",),
    "google": ("engine.onnx_io",),
    "PIL": ("engine.ops.image_decoder",),
    "onnxruntime": ("engine.debug", "workers"),
    "platformdirs": ("engine", "scheduler", "workers"),
    "filelock": ("engine", "storage", "scheduler", "workers"),
    "sqlalchemy": ("storage",),
    "alembic": ("storage",),
    "cryptography": ("scheduler",),
    "urllib3": ("scheduler",),
    "click": ("workers",),
    "rich": ("workers",),
    "celery": ("workers.app",),
    "fastapi": ("scheduler",),
    "triton": ("engine.templates", "engine.cuda"),
    "cuda": ("engine.cuda",),
    "cudnn": ("engine.cuda",),
    "cupy": ("engine.cuda",),
}


def modules() -> dict[str, ast.Module]:
    """Every module of the four rooms, parsed, by its dotted name."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imported(module: str, tree: ast.AST, *, types_too: bool = True) -> Iterator[str]:
    """Dotted names that a module imports anywhere, inside functions as well."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            if types_too:
                yield from imported(module, node)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        else:
            yield from imported(module, node, types_too=types_too)


def part(module: str) -> str:
    """The part of the engine to which a module belongs."""
    names = module.split(".")
    prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((p for p in prefixes if p in PARTS or p in FREE), module)


def inside(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, tree in MODULES.items()
        if module.split(".")[0] == room
        for name in imported(module, tree)
        if name.split(".")[0] in ROOMS and name.split(".")[0] not in ROOMS[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_inside_the_engine_imports_follow_a_model_from_file_to_runtime() -> None:
    wrong = []
    for module, tree in MODULES.items():
        own = part(module)
        if not module.startswith("engine") or own in FREE:
            continue
        for name in imported(module, tree, types_too=False):
            if name.split(".")[0] == "engine" and part(name) not in PARTS[own] | {own}:
                wrong.append(f"{module} imports {name}, which {own} may not")
    assert not wrong, "\n".join(wrong)


def test_every_module_of_the_engine_belongs_to_a_known_part() -> None:
    unknown = {part(m) for m in MODULES if m.startswith("engine")} - set(PARTS) - FREE
    assert not unknown, f"give each of these a row in PARTS: {sorted(unknown)}"


def test_third_party_packages_are_imported_only_where_they_belong() -> None:
    wrong = []
    for module, tree in MODULES.items():
        for name in imported(module, tree, types_too=False):
            package = name.split(".")[0]
            if package in sys.stdlib_module_names or package in ROOMS:
                continue
            if package not in THIRD_PARTY:
                wrong.append(f"{module} imports {package}, which has no row in THIRD_PARTY")
            elif not inside(module, THIRD_PARTY[package]):
                wrong.append(f"{module} imports {package}; only {THIRD_PARTY[package]} may")
    assert not wrong, "\n".join(wrong)


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import engine", "from engine import load", "import workers.cli", "import scheduler"],
)
def test_importing_loads_neither_the_importer_nor_the_database(statement: str) -> None:
    heavy = {"onnx", "onnxruntime", "sqlalchemy", "alembic", "celery", "fastapi", "PIL", "torch"}
    assert not loaded_by(statement) & heavy
