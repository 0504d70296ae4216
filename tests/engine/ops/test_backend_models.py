"""Models of several nodes from onnx's backend suite, run node by node through the meanings.

They are the definitions of functions (Attention made of MatMul, Softmax, ...) and small models of
sequences and strings.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TypeProto, numpy_helper

from engine.errors import UnsupportedOperatorError
from engine.ir.types import DType
from engine.ops import find
from engine.ops.exclusions import EXCLUSIONS
from tests.engine.ops.conformance import RANDOM, STEP, array, attribute, same, suite

GROUP = re.compile(r"test_([a-z]+)")


def has_bodies(model: onnx.ModelProto) -> bool:
    return any(item.HasField("g") for node in model.graph.node for item in node.attribute)


@cache
def models() -> dict[str, list[tuple[str, onnx.ModelProto, Any]]]:
    """Name, model and data of every model without bodies, by the first word of its name."""
    result: dict[str, list[tuple[str, onnx.ModelProto, Any]]] = defaultdict(list)
    for case in [*suite("node"), *suite("simple")]:
        model, data = case.model, case.data_sets
        if model is None:
            model = onnx.load(Path(case.model_dir) / "model.onnx")
            data = stored_data(model, Path(case.model_dir))
        elif len(model.graph.node) == 1:
            continue
        excluded = any((node.domain, node.op_type) in EXCLUSIONS for node in model.graph.node)
        found = GROUP.match(case.name)
        if not excluded and not has_bodies(model) and found:
            result[found[1]].append((case.name, model, data))
    return dict(result)


def stored_data(model: onnx.ModelProto, folder: Path) -> list[tuple[list[Any], list[Any]]]:
    """The data sets that lie beside a model: inputs and outputs."""
    result = []
    constant = {item.name for item in model.graph.initializer}
    formal = [info for info in model.graph.input if info.name not in constant]
    for place in sorted(folder.glob("test_data_set_*")):
        sides = []
        for side, infos in (("input", formal), ("output", model.graph.output)):
            files = [place / f"{side}_{index}.pb" for index in range(len(infos))]
            sides.append([read(f, i.type) for f, i in zip(files, infos, strict=True)])
        result.append((sides[0], sides[1]))
    return result


def read(file: Path, kind: TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(file.read_bytes())
        return numpy_helper.to_list(sequence)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return tensor


def run(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a model, by the meanings of its nodes."""
    graph = model.graph
    versions = {item.domain: item.version for item in model.opset_import}
    values: dict[str, Any] = {item.name: array(item) for item in graph.initializer}
    formal = [info.name for info in graph.input if info.name not in values]
    values |= {name: array(item) for name, item in zip(formal, inputs, strict=True)}
    for node in graph.node:
        found = find(node.domain, node.op_type, versions[node.domain])
        attributes = {item.name: attribute(item) for item in node.attribute}
        if "output_count" in found.__dataclass_fields__:
            attributes["output_count"] = len(node.output)
        operator = found.from_attributes(attributes)
        result = operator.meaning(*[values[name] if name else None for name in node.input])
        results = result if isinstance(result, tuple) else (result,)
        values |= {name: item for name, item in zip(node.output, results, strict=False) if name}
    return [values[info.name] for info in graph.output]


def failure(name: str, model: onnx.ModelProto, data: Any) -> str | None:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for inputs, outputs in data:
                results = run(model, inputs)
                if RANDOM.match(name):
                    continue
                for found, expected in zip(results, map(array, outputs), strict=True):
                    same(found, expected, rtol=tolerance(expected), atol=1e-7, where="output")
    except UnsupportedOperatorError as error:
        return f"{name}: {error}"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def tolerance(expected: Any) -> float:
    """Relative; two steps of the type where several nodes round to 16 bits or fewer."""
    kind = DType.of(expected.dtype) if isinstance(expected, np.ndarray) else DType.FLOAT32
    return max(1e-3, 2 * STEP.get(kind, 0))


@pytest.mark.parametrize("group", sorted(models()))
def test_models_made_of_several_nodes_give_the_answers_of_the_suite(group: str) -> None:
    chosen = models()[group]
    failures = [text for text in (failure(*item) for item in chosen) if text]
    assert not failures, f"{len(failures)} of {len(chosen)} models:\n  " + "\n  ".join(failures)
