"""onnxruntime behind the two calls that `benchmarks.backend_suite` makes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime


@dataclass(frozen=True, slots=True)
class Copy:
    """A model waiting to be stored; there is nothing to build."""

    model: Path | onnx.ModelProto

    def save(self, path: Path) -> None:
        if isinstance(self.model, Path):
            shutil.copyfile(self.model, path)
        else:
            path.write_bytes(self.model.SerializeToString())


@dataclass(frozen=True, slots=True)
class Network:
    """A session that takes and gives values by name."""

    session: Any

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True))


def build(model: Path | onnx.ModelProto, **_: Any) -> Copy:
    return Copy(model)


def load(path: Path, **_: Any) -> Network:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return Network(
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    )
