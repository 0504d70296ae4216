"""External data is mapped and never read; what is absent, short or elsewhere is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engine.debug.interpret import interpret
from engine.errors import InvalidModelError, MissingDataError
from engine.onnx_io import read
from tests.engine.small_models import model

ROWS = 300


def saved(folder: Path, location: str = "weights.bin", **changes: str) -> Path:
    """x @ w with w in a file of its own; ``changes`` replace fields of the external data."""
    folder.mkdir(exist_ok=True)
    w = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
    (folder / "weights.bin").write_bytes(bytes(4096) + w.tobytes())
    proto = model(f"(float[N, {ROWS}] x) => (float[] y) {{ y = MatMul(x, w) }}", weights={"w": w})
    (tensor,) = proto.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    fields = {"location": location, "offset": "4096", "length": str(w.nbytes), **changes}
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_weight_is_a_read_only_map_of_its_file(tmp_path: Path) -> None:
    graph = read(saved(tmp_path))
    (weight,) = graph.constants()
    assert isinstance(weight.constant, np.memmap) and not weight.constant.flags.writeable
    x = np.eye(ROWS, dtype=np.float32)
    np.testing.assert_array_equal(interpret(graph, {"x": x})["y"], weight.constant)


def test_a_plan_of_a_model_with_external_data_is_right(tmp_path: Path) -> None:
    import engine

    path = saved(tmp_path)
    engine.build(path, level=0).save(tmp_path / "model.engine")
    x = np.random.default_rng(0).standard_normal((2, ROWS)).astype(np.float32)
    found = engine.load(tmp_path / "model.engine", compile="wait")({"x": x})["y"]
    np.testing.assert_allclose(found, interpret(read(path), {"x": x})["y"], rtol=1e-4)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("gone.bin", "'gone.bin', which is not there"),
        ("../weights.bin", "outside the model's folder"),
        ("a/../../weights.bin", "outside the model's folder"),
        ("/etc/passwd", "expected a path relative"),
        ("", "expected a path relative"),
        (".", "not there"),
        ("link.bin", "outside the model's folder"),
        ("linked/secret.bin", "outside the model's folder"),
        ("nul\0byte", "no path"),
        ("loop.bin", "no path"),
        ("a" * 300, "no path"),
    ],
)
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, location: str, message: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.bin").write_bytes(bytes(1 << 16))
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 16))
    path = saved(tmp_path / "inside", location)
    (path.parent / "link.bin").symlink_to(outside / "secret.bin")
    (path.parent / "linked").symlink_to(outside)
    (path.parent / "loop.bin").symlink_to("loop.bin")
    with pytest.raises(MissingDataError, match="'w'") as caught:
        read(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": "5000"}, "needs 4800 bytes at offset 5000"),
        ({"offset": "-1"}, "offset -1"),
        ({"offset": str(1 << 70)}, "needs 4800 bytes"),
        ({"length": "17"}, "declared length: 17"),
    ],
)
def test_a_file_that_is_too_short_is_refused(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(MissingDataError, match=message):
        read(saved(tmp_path, **changes))


def test_an_offset_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="offset or length of its data is no number"):
        read(saved(tmp_path, offset="far"))


def test_a_size_beyond_all_files_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].dims[:] = [1 << 32, 1 << 32]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(MissingDataError, match="needs 73786976294838206464 bytes"):
        read(path)


def test_external_data_needs_a_file_to_lie_beside(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="given as bytes"):
        read(saved(tmp_path).read_bytes())
