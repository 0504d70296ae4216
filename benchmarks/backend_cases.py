"""The cases of onnx's backend suite as plain arrays, and the suite's own comparison."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import DATA_DIR, load_model_tests
from onnx.backend.test.runner import Runner

KINDS = ("real", "simple", "pytorch-converted", "pytorch-operator", "node")


@dataclass(frozen=True, slots=True)
class Case:
    """One case: a model (a file, or made by the suite) and the suite's data and tolerances."""

    name: str
    kind: str
    source: TestCase

    def model(self) -> Path | onnx.ModelProto:
        """The model, as a path where the suite keeps a file."""
        if self.kind == "node":
            return self.source.model
        if self.kind == "real":
            return Path(DATA_DIR) / "light" / f"light_{self.source.model_name}.onnx"
        return Path(self.source.model_dir) / "model.onnx"

    def data(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Inputs and expected outputs by name, one pair for each data set."""
        model = self.model()
        graph = (onnx.load(model) if isinstance(model, Path) else model).graph
        weights = {tensor.name for tensor in graph.initializer}
        feeds = [value for value in graph.input if value.name not in weights]
        if self.kind == "node":
            sets = self.source.data_sets
        elif self.kind == "real":
            sets = [real_data(self.source.model_name, feeds[0])]
        else:
            sets = stored_data(Path(self.source.model_dir), graph)
        if self.kind in ("simple", "pytorch-converted", "pytorch-operator"):
            feeds = list(graph.input)  # a data set may feed initialisers too, in graph order
        for inputs, outputs in sets:
            names = [value.name for value in feeds][: len(inputs)]
            yield (
                dict(zip(names, map(plain, inputs), strict=True)),
                dict(zip((v.name for v in graph.output), map(plain, outputs), strict=True)),
            )

    def check(self, got: dict[str, Any], expected: dict[str, Any]) -> None:
        """Raise AssertionError unless the outputs are those expected, as the suite judges it."""
        missing = sorted(expected.keys() - got.keys())
        assert not missing, f"no output {missing[0]!r}; there are {sorted(got)}"
        for name, wanted in expected.items():
            same(plain(got[name]), wanted, rtol=self.source.rtol, atol=self.source.atol)


def load_cases() -> list[Case]:
    """Every case of the suite, the large networks first."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return [
            Case(test.name, kind, test)
            for kind in KINDS
            for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name)
        ]


def real_data(name: str, feed: onnx.ValueInfoProto) -> tuple[list[Any], list[Any]]:
    """The suite's input for a network and the output stored beside the model."""
    tensor = onnx.TensorProto()
    stored = Path(DATA_DIR) / "light" / f"light_{name}_output_0.pb"
    tensor.ParseFromString(stored.read_bytes())
    return [Runner.generate_dummy_data(feed, seed=0, name=name, random=False)], [tensor]


def stored_data(folder: Path, graph: onnx.GraphProto) -> Iterator[tuple[list[Any], list[Any]]]:
    """The data sets of a case that lies in a folder."""
    for data_set in sorted(folder.glob("test_data_set*")):
        yield (
            [stored(data_set, "input", i, v) for i, v in present(data_set, "input", graph.input)],
            [
                stored(data_set, "output", i, v)
                for i, v in present(data_set, "output", graph.output)
            ],
        )


def present(folder: Path, role: str, values: Any) -> Iterator[tuple[int, onnx.ValueInfoProto]]:
    """The values for which the folder holds a file; files are numbered without gaps."""
    files = glob.glob(f"{glob.escape(str(folder))}/{role}_*.pb")
    return iter(list(enumerate(values))[: len(files)])


def stored(folder: Path, role: str, index: int, value: onnx.ValueInfoProto) -> Any:
    """One stored value: a tensor, a sequence or an optional, as its type in the graph says."""
    content = (folder / f"{role}_{index}.pb").read_bytes()
    which = value.type.WhichOneof("value")
    if which == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if which == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return onnx.TensorProto.FromString(content)


def plain(value: Any) -> Any:
    """A value as users hold it: arrays, lists for sequences, None for nothing, str for text."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        flat = [v.decode() if isinstance(v, bytes) else str(v) for v in array.ravel().tolist()]
        array = np.array(flat, object).reshape(array.shape)
    return array


def same(got: Any, wanted: Any, *, rtol: float, atol: float) -> None:
    """Compare like the suite's runner: kind, shape, dtype, then values within tolerance."""
    if wanted is None:
        assert got is None, f"found {got!r}, expected nothing"
        return
    if isinstance(wanted, list):
        assert isinstance(got, list), f"found {type(got).__name__}, expected a sequence"
        assert len(got) == len(wanted), f"found {len(got)} elements, expected {len(wanted)}"
        for one, other in zip(got, wanted, strict=True):
            same(one, other, rtol=rtol, atol=atol)
        return
    assert isinstance(got, np.ndarray), f"found {type(got).__name__}, expected a tensor"
    assert got.shape == wanted.shape, f"found shape {got.shape}, expected {wanted.shape}"
    assert got.dtype == wanted.dtype, f"found {got.dtype}, expected {wanted.dtype}"
    if wanted.dtype == object:
        np.testing.assert_array_equal(got, wanted)
        return
    if wanted.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)  # two steps, as in the suite's runner
    if wanted.dtype.kind not in "biufc":  # NumPy cannot promote these itself
        got, wanted = got.astype(np.float32), wanted.astype(np.float32)
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)
