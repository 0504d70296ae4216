"""Writes docs/operators.md: every operator of the installed onnx, and how the engine runs it.

    python -m scripts.operators           write the page
    python -m scripts.operators --check   leave with 1 when the page is out of date

Meanings come from the registry. Tactics are tried out: each single-node case of onnx's backend
suite is read and optimised, once as it is and once with constants for all inputs but the first,
and whatever tactic then offers kernels is listed. Failing cases come from
``benchmarks/results/backend_suite.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_node_model_tests

from engine.building import BuildOptions, optimise, read_model
from engine.errors import EngineError
from engine.ir.graph import Graph
from engine.ops import Operator, known
from engine.ops.exclusions import EXCLUSIONS
from engine.tactics import candidates
from engine.target import describe

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "operators.md"
SUITE = ROOT / "benchmarks" / "results" / "backend_suite.json"
#: What follows this line depends on the latest run of the suite.
SUITE_HEADING = "## Failing cases of the backend suite"
OLDEST_OPSET = 7

#: Targets that are tried, and the sources that need no device to offer kernels for them.
SOURCES = {"cpu": ("c",), "cuda:sm90": ("triton", "nvrtc")}
GPU = "cuda:sm90"

Key = tuple[str, str]


@dataclass(slots=True)
class Tried:
    """What became of an operator's cases: how many there are, and by which tactics they ran.

    ``fast`` counts by target the cases that kernels run as a whole, ``tactics`` names the kernels.
    """

    cases: int = 0
    fast: Counter[str] = field(default_factory=Counter)
    tactics: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SOURCES})


def schemas() -> dict[Key, list[int]]:
    """The versions of each operator that are in force at opset 7 or later, oldest first."""
    history: dict[Key, list[Any]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        history[schema.domain, schema.name].append(schema)
    found = {}
    for key, versions in sorted(history.items()):
        versions.sort(key=lambda schema: schema.since_version)
        if key[0] == "":
            old = [item for item in versions if item.since_version <= OLDEST_OPSET]
            versions = old[-1:] + versions[len(old) :]
        valid = [item.since_version for item in versions if not item.deprecated]
        if valid:
            found[key] = valid
    return found


def variants(case: Any) -> Iterator[onnx.ModelProto]:
    """A case's model as it is, and as models use the operator: with constants, and one output."""
    yield case.model
    usual = onnx.load_from_string(case.model.SerializeToString())
    graph = usual.graph
    given = case.data_sets[0][0] if case.data_sets else []
    for value, array in list(zip(graph.input, given))[:0:-1]:
        if isinstance(array, np.ndarray):
            graph.initializer.append(numpy_helper.from_array(array, value.name))
            graph.input.remove(value)
    del graph.output[1:]
    if graph.output and graph.node[0].output[0] == graph.output[0].name:
        # The node between others: what passes its input through can only go when it ends nothing.
        graph.node[0].output[0] = "between"
        graph.node.add(op_type="Identity", input=["between"], output=[graph.output[0].name])
    yield usual


def tactics_of(graph: Graph, target: str) -> set[str] | None:
    """The tactics that run a graph by kernels as a whole; None when a step needs its meaning.

    Nodes that only change a shape cost nothing ("view"), nor does what folds to a constant
    ("folded"). An identity is left only where an input is an output, as in these small models.
    """
    found: set[str] = set()
    for node in graph.nodes:
        if node.kind in ("View", "Identity"):
            found.add("view")
            continue
        offered, _ = candidates(node, SOURCES[target], {}, describe(target))
        if not offered:
            return None
        found |= {item.tactic for item in offered}
    return found or {"folded"}


def try_out() -> dict[Key, Tried]:
    """Every single-node case of the backend suite, by operator."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        tried: dict[Key, Tried] = defaultdict(Tried)
        for case in sorted(load_node_model_tests(), key=lambda item: item.name):
            if case.model is None or len(case.model.graph.node) != 1:
                continue
            node = case.model.graph.node[0]
            row = tried[node.domain if node.domain != "ai.onnx" else "", node.op_type]
            row.cases += 1
            graphs = [graph for graph in map(_graph, variants(case)) if graph is not None]
            for target in SOURCES:
                answers = [tactics_of(graph, target) for graph in graphs]
                found = [answer for answer in answers if answer]
                row.fast[target] += bool(found)
                row.tactics[target].update(*found)
    return tried


def _graph(model: onnx.ModelProto) -> Graph | None:
    try:
        return optimise(read_model(model, BuildOptions(reference=False)))
    except EngineError:
        return None


def onnxruntime_kernels() -> set[Key]:
    """The operators for which the installed onnxruntime has a kernel on the CPU."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    return {
        ("" if kernel.domain == "ai.onnx" else kernel.domain, kernel.op_name)
        for kernel in native.get_all_opkernel_def()
        if kernel.provider == "CPUExecutionProvider"
    }


def full_name(key: Key) -> str:
    return ".".join(filter(None, key))


def row_text(key: Key, versions: Sequence[int], classes: Sequence[type[Operator]], t: Tried) -> str:
    """One line of the table."""
    if not classes:
        return f"| {full_name(key)} | {_numbers(versions)} | excluded | | | | |"
    files = sorted({cls.__module__.rpartition(".")[2] for cls in classes})
    meaning = ", ".join(f"`{name}`" for name in files)
    cells = [full_name(key), _numbers(versions), meaning]
    for target, none in (("cpu", "NumPy"), (GPU, "meaning")):
        cells.append(", ".join(sorted(t.tactics[target])) or none)
        cells.append(f"{t.fast[target]} of {t.cases}" if t.cases else "no case")
    return f"| {' | '.join(cells)} |"


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


INTRODUCTION = """\
# Operators

Written by `python -m scripts.operators` from onnx {onnx}; do not edit.

Every operator in force at opset {oldest} or later. **Meaning** is the file of `engine/ops/` with
its shape rule and its NumPy meaning: the constant folder, the oracle of the tests, and what runs
where no tactic serves. **CPU** and **GPU** list the tactics that offered kernels when the
operator's single-node cases of onnx's backend suite were read and optimised, each as it is, and as
models use it: with constants for all inputs but the first, and one output. A **view** costs nothing
at run time, nor does what is **folded** to a constant. **Cases** says for how many of them this
covers the whole graph. The others run as their meaning: for their element types (strings, integers
and floats of 8 bits or fewer; contractions, pooling and attention take float32 only on a CPU, and
float16, bfloat16 and float32 on a GPU), or for a form that no tactic serves. In a real
model an operator often fares better than alone: activations, additions and batch norms join the
layer before them, and products, transposes and a softmax become attention.

| tactic | serves |
|---|---|
| c.region | elementwise chains, reductions of the last axis, softmax, norms, data movement |
| c.gemm | MatMul and Gemm with what follows them |
| c.convolution | convolutions with what follows them |
| c.winograd | convolutions with 3 x 3 filters at stride 1 |
| c.depthwise | convolutions with one filter per channel |
| c.pooling | maximum and average pooling, over windows or whole images |
| c.attention | scaled dot-product attention |
| c.transpose | transposes that move the last axis |
| c.concat | concatenation; inputs made in their slices cost nothing |

On a GPU the libraries' tactics (`cublaslt`, `cudnn`) come beside these for products, convolutions
and attention, and what has no kernel runs as its meaning on CuPy's arrays where those can, else on
the host. Candidates are listed for {gpu}.

| tactic | serves |
|---|---|
| nvrtc.region | elementwise chains, reductions, softmax, norms, data movement |
| triton.gemm, nvrtc.gemv | MatMul and Gemm with what follows them; those of few rows |
| triton.convolution, nvrtc.depthwise | convolutions with what follows them; depthwise ones |
| triton.stem, nvrtc.stem | the first convolution of an image |
| triton.attention, triton.cache_update | attention, also over a cache; writing into a cache |
| nvrtc.plain | products, convolutions and attention of every size and type that the others refuse |
| nvrtc.pooling, nvrtc.map_reduction | pooling over windows; over whole images |
| nvrtc.resize | images resized between NHWC layers |
| nvrtc.transpose, nvrtc.concat | transposes that move the last axis; concatenation |
"""


def page(tried: Mapping[Key, Tried]) -> str:
    """The whole page but for the suite's section."""
    versions, registered = schemas(), known()
    with_meaning = [key for key in versions if key in registered]
    lines = [INTRODUCTION.format(onnx=onnx.__version__, oldest=OLDEST_OPSET, gpu=GPU)]
    fast = {
        target: sum(bool(tried[k].fast[target]) for k in with_meaning if k in tried)
        for target in SOURCES
    }
    lines.append(
        f"{len(with_meaning)} of {len(versions)} operators have a meaning of their own; "
        f"{fast['cpu']} of them have kernels on a CPU, {fast[GPU]} on a GPU.\n"
    )
    header = "| operator | versions | meaning | CPU | cases | GPU | cases |\n"
    lines.append(f"{header}|---|---|---|---|---|---|---|")
    lines += [
        row_text(key, found, registered.get(key, ()), tried.get(key, Tried()))
        for key, found in versions.items()
    ]
    lines.append("\n## Excluded\n")
    lines += [f"- **{full_name(key)}**: {reason}." for key, reason in sorted(EXCLUSIONS.items())]
    lines.append(_REFERENCE)
    return "\n".join(lines) + "\n"


_REFERENCE = """
## The reference step

An operator without a meaning here, such as one of a newer onnx, becomes a step that runs onnx's
own reference evaluator. The plan then says that it requires onnx, and `--no-reference` (in Python
`reference=False`) refuses it. No operator of the table needs it.

## Beside onnxruntime

Every standard operator for which onnxruntime has a CPU kernel has a meaning here.
`tests/test_docs.py` asks the installed onnxruntime for its list of kernels and compares it with
the registry."""


def suite_section(result: Mapping[str, Any]) -> str:
    """What the latest run of the backend suite says, with each failing case and its reason."""
    lines = [
        f"\n{SUITE_HEADING}\n",
        f"onnx {result['onnx']}, {result['cases']} cases: {result['passed']} pass, "
        f"{result['passed_without_reference']} of them without the reference step. "
        "`python -m benchmarks.backend_suite` runs them again.\n",
    ]
    failures = result["failures"]
    if not failures:
        return "\n".join(lines)
    lines.append("| case | kind | with the reference step | reason |\n|---|---|---|---|")
    for name, failure in sorted(failures.items()):
        verdict = "fails" if failure["with_reference"] else "passes"
        reason = failure["with_reference"] or failure["without_reference"]
        text = reason.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {name} | {failure['kind']} | {verdict} | {text} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.operators")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(arguments)
    text = page(try_out())
    if SUITE.exists():
        text += suite_section(json.loads(SUITE.read_text(encoding="utf-8")))
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
        return 0
    if PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/operators.md is out of date: run python -m scripts.operators", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
