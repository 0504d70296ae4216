"""Load an engine and run it where only the core dependencies are installed; check its output."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np

import engine

ABSENT = (
    *("onnx", "onnxruntime", "sqlalchemy", "alembic", "celery", "fastapi"),
    *("cuda", "triton", "cudnn", "cupy"),
)


def main() -> None:
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    if present:
        raise SystemExit(f"this environment should hold the core only, but found {present}")
    folder = Path(sys.argv[1])
    case = np.load(folder / "case.npz")
    network = engine.load(str(folder / "model.engine"))
    got = np.asarray(network({"x": case["x"]})["y"])
    np.testing.assert_allclose(got, case["y"], rtol=1e-4, atol=1e-5)
    print(
        f"core only: loaded and ran an engine, output {got.shape}, as expected ({engine.__file__})"
    )


if __name__ == "__main__":
    main()
