"""onnxruntime as a second opinion: the same model, run by somebody else's code."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import KernelError, MissingExtraError

__all__ = ["Peer", "onnxruntime_peer"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another runtime with a model loaded: its name, version, and a session of it."""

    name: str
    version: str
    session: Any

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run once, values by name in and out."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))


def onnxruntime_peer(model: str | os.PathLike[str], threads: int | None = None) -> Peer:
    """A model in onnxruntime on the CPU, on so many threads.

    Raises MissingExtraError where it is not installed, KernelError when it refuses the model.
    """
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "dev", "a comparison with onnxruntime") from error
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise KernelError(f"onnxruntime does not load {Path(model)}: {words}") from error
    return Peer("onnxruntime", str(onnxruntime.__version__), session)
