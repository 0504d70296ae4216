"""The command line for GPUs: builds for a described one, runs on one that only counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import engine.building
import engine.cuda.device
import engine.target
from engine.cuda.null_device import NullDevice
from engine.errors import DeviceError, MissingExtraError
from engine.plan.plan import open_plan
from engine.target import CudaTarget, describe
from tests.workers.real_engine import RealLine, convnet
from workers import gpu_health, gpu_layers
from workers.exit_codes import ExitCode

pytest.importorskip("cuda.bindings")
SHAPE = ("--shape", "x=batch=1..2..4,3,16,16")
#: Only NVRTC, whose kernels compile quickly.
BUILD = ("--target", "cuda:sm90", "--precision", "fp16", "--level", 0, "--tactics", "nvrtc", *SHAPE)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> RealLine:
    made = RealLine(tmp_path_factory.mktemp("cuda"))
    made.outcome("build", made.network, *BUILD, "-o", made.folder / "gpu.engine")
    return made


@pytest.fixture
def plan(line: RealLine) -> Path:
    return line.folder / "gpu.engine"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[NullDevice]:
    """A GPU that computes nothing in the place of the first one."""
    device = NullDevice(memory_nbytes=1 << 27)
    monkeypatch.setattr(engine.cuda.device, "open_device", lambda index=0: device)
    engine.target._probed.cache_clear()
    monkeypatch.setattr(engine.cuda.device, "probe", lambda index=0: device.target)
    yield device
    engine.target._probed.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Exception], None]]:
    """Makes whoever looks for a GPU meet an error."""

    def refuse(error: Exception) -> None:
        def fails(index: int = 0) -> CudaTarget:
            raise error

        monkeypatch.setattr(engine.cuda.device, "probe", fails)
        monkeypatch.setattr(engine.cuda.device, "open_device", fails)

    engine.target._probed.cache_clear()
    yield refuse
    engine.target._probed.cache_clear()


# Building -----------------------------------------------------------------------------------------


def test_a_build_for_a_described_gpu_is_kept_and_found_again(line: RealLine, plan: Path) -> None:
    made = open_plan(plan)
    assert made.target["vendor"] == "cuda" and made.target["capability"] == [9, 0]
    assert {layer.tactic.split(".")[0] for layer in made.program.layers} <= {"nvrtc", "numpy"}
    assert not made.requires and made.images
    again = line.outcome("build", line.network, *BUILD)
    assert again["answer"] == "hit"
    check = again["report"]["check"]
    assert check["compared"] == 1 or "loaded on no GPU" in check["note"]
    told = line.outcome("explain", line.network, *BUILD)
    assert told["parts"]["target"]["device_class"] == "cuda.sm90.h200"
    assert told["parts"]["options"]["precision"] == "fp16"
    shown = line.outcome("inspect", plan)
    assert shown["host_steps"] == [] and shown["target"]["name"] == "h200"


def test_a_build_tells_that_no_gpu_ran_it_and_fetching_wants_one(
    line: RealLine, plan: Path, no_gpu: Callable[[Exception], None]
) -> None:
    no_gpu(DeviceError("no GPU can be used: there is none on this machine"))
    words = (*BUILD, "--precision", "fp32")
    made = line.outcome("build", line.network, *words, "--name", "gpu:only")
    assert made["report"]["kernels"] == len(open_plan(Path(made["file"])).program.functions) > 0
    sentence = "no GPU can be used: there is none on this machine"
    if "note" in made["report"]["check"]:  # the check ran in a process of its own
        assert "not run  loaded on no GPU" in line.run("build", line.network, *words)[0]
    copy = line.folder / "fetched.engine"
    told = line.refused("fetch", "gpu:only", "-o", copy, code=3)
    assert f"does not run on this machine: {sentence}" in told and not copy.exists()
    assert line.outcome("fetch", "gpu:only", "-o", copy, "--any-target")["file"] == str(copy)


@pytest.mark.parametrize(("target", "fits"), [("cuda:sm90", True), ("cuda:sm80", False)])
def test_fetching_asks_the_gpu_that_is_here(
    line: RealLine, plan: Path, monkeypatch: pytest.MonkeyPatch, target: str, fits: bool
) -> None:
    monkeypatch.setattr(engine.target, "_probed", lambda index: describe(target))
    words = ("fetch", line.network, *BUILD, "-o", line.folder / "fetched.engine")
    if fits:
        assert line.outcome(*words)["size"] == plan.stat().st_size
    else:
        assert "the GPU here is sm_80" in line.refused(*words, code=3)


def test_another_precision_or_target_is_another_engine(line: RealLine) -> None:
    keys = set()
    for words in (BUILD, (*BUILD, "--precision", "fp32"), (*BUILD, "--target", "cuda:sm80")):
        keys.add(line.outcome("explain", line.network, *words)["key"])
    assert len(keys) == 3


def test_a_described_gpu_cannot_be_measured_on(line: RealLine) -> None:
    words = ("--target", "cuda:sm80", "--level", 1, *SHAPE)
    assert "nothing to measure on" in line.refused("build", line.network, *words, code=7)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--target", "cuda:sm70"), "there is no target 'cuda:sm70'"),
        (("--target", "cuda:sm90", "--tactics", "c"), "cuda:sm90 has no tactic source 'c'"),
        (("--tactics", "triton"), "cpu has no tactic source 'triton'"),
    ],
)
def test_options_that_mean_nothing_are_named(
    line: RealLine, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in line.refused("build", line.network, *words, code=7)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DeviceError("the NVIDIA driver is too old: it serves CUDA 12.4, needed is 13.0"), 8),
        (DeviceError("no GPU can be used: there is none on this machine"), 8),
        (MissingExtraError("cuda-bindings", "cuda", "running on a GPU"), 5),
    ],
)
def test_without_a_gpu_one_sentence_says_why(
    line: RealLine,
    plan: Path,
    no_gpu: Callable[[Exception], None],
    error: Exception,
    code: ExitCode,
) -> None:
    no_gpu(error)
    wanted = f"error: {error}"
    assert line.refused("build", line.network, "--target", "cuda", code=code) == wanted
    assert line.refused("run", plan, "--random", code=code) == wanted
    assert line.refused("bench", plan, code=code) == wanted
    # The process works on: for a CPU, and for a GPU that is only described.
    assert line.outcome("run", line.plan, "--random")["compiled"] in (True, False)
    assert line.outcome("build", line.network, *BUILD)["answer"] == "hit"


def test_a_compiler_that_is_missing_is_named_with_its_extra(
    line: RealLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(target: object) -> object:
        raise MissingExtraError("triton", "triton", "compiling kernels for a GPU")

    words = ("build", line.network, *BUILD, "--tactics", "triton,nvrtc")
    with monkeypatch.context() as patched:
        patched.setattr(engine.building, "device_compiler", missing)
        told = line.refused(*words, code=5)
        assert "pip install 'enginefarm[triton]'" in told
    assert line.outcome(*words)["answer"] == "built"  # and not remembered as a failure


def test_weights_that_are_no_numbers_are_named(line: RealLine) -> None:
    model = convnet()
    broken = next(item for item in model.graph.initializer if item.name == "w2")
    values = numpy_helper.to_array(broken).copy()
    values[1, 2, 0, 0] = np.nan
    broken.CopyFrom(numpy_helper.from_array(values, "w2"))
    path = line.folder / "broken.onnx"
    onnx.save(model, path)
    told = line.refused("build", path, *BUILD, code=7)
    assert "the weight 'w2' of node 'conv2' (Conv) holds 1 not-a-numbers" in told


# Running ------------------------------------------------------------------------------------------


def test_a_plan_runs_on_the_gpu_that_the_target_names(
    line: RealLine, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def open_device(index: int = 0) -> NullDevice:
        opened.append(index)
        return NullDevice()

    monkeypatch.setattr(engine.cuda.device, "open_device", open_device)
    found = line.outcome("run", plan, "--random", "--size", "batch=3")
    assert found["outputs"]["y"]["shape"] == [3, 5] and found["compiled"]
    line.outcome("run", plan, "--random", "--target", "cuda:1")
    assert opened == [0, 1]
    assert (
        "--threads is for engines of a CPU"
        in line.run("run", plan, "--random", "--threads", 2, code=2)[1]
    )


def test_a_plan_for_another_capability_is_refused(
    line: RealLine, plan: Path, gpu: NullDevice
) -> None:
    gpu.target = describe("cuda:sm80")  # type: ignore[assignment]
    told = line.refused("run", plan, "--random", code=3)
    assert "built for compute capability 9.0" in told and "has 8.0" in told
    gpu.target = describe("cuda:sm90")  # type: ignore[assignment]
    line.outcome("run", plan, "--random")


def test_too_little_memory_says_how_much_was_needed(
    line: RealLine, plan: Path, gpu: NullDevice
) -> None:
    gpu.memory_nbytes = 512
    told = line.refused("run", plan, "--random", code=8)
    assert "too little free memory" in told and "needed are" in told and "weights" in told
    gpu.memory_nbytes = 6000
    told = line.refused("run", plan, "--random", code=8)
    assert "a context at batch=2" in told
    told = line.refused("bench", plan, "--iterations", 1, code=8)
    assert "the buffer of 'x'" in told and "measure fewer streams" in told
    gpu.memory_nbytes = 1 << 27
    line.outcome("run", plan, "--random")
    assert gpu.held["allocations"] <= 4


def test_a_fault_names_layers_and_leaves_with_the_code_of_the_device(
    line: RealLine, plan: Path, gpu: NullDevice
) -> None:
    gpu.fault = "the GPU reported an access to memory that is not there"
    told = line.refused("run", plan, "--random", code=8)
    assert "not there" in told


# Measuring ----------------------------------------------------------------------------------------


def test_bench_counts_runs_over_all_streams(line: RealLine, plan: Path, gpu: NullDevice) -> None:
    export = line.folder / "bench.json"
    words = ("--iterations", 12, "--batch", 3, "--streams", 2, "--layers", "--export", export)
    found = line.outcome("bench", plan, *words)
    assert json.loads(export.read_bytes()) == found
    latency = found["latency"]
    assert latency["runs"] == 24
    order = ("least", "median", "p90", "p99")
    assert sorted(order, key=latency.__getitem__) == list(order)
    assert found["inputs"] == {"x": [3, 3, 16, 16]} and found["batch"] == 3
    assert found["gpu"]["capability"] == [9, 0] and found["contexts"] == 2
    assert found["back_to_back"] > 0 and found["per_second"] > 0 and found["bandwidth"] > 0
    known = {layer.name: layer.tactic for layer in open_plan(plan).program.layers}
    assert {item["layer"]: item["tactic"] for item in found["layers"]} == known
    assert sum(item["share"] for item in found["layers"]) == pytest.approx(1)
    assert gpu.counts["graph launch"] > 48 and not gpu.held["graphs"]


@pytest.mark.parametrize("transfers", ["--transfers", "--no-transfers"])
@pytest.mark.parametrize("graph", ["--graph", "--no-graph"])
def test_bench_runs_as_it_is_told(
    line: RealLine, plan: Path, gpu: NullDevice, graph: str, transfers: str
) -> None:
    line.outcome("bench", plan, "--iterations", 5, "--warmup", 3, graph, transfers)
    assert bool(gpu.counts["graph launch"]) == (graph == "--graph")
    runs = 3 + 5 + (5 if transfers == "--no-transfers" else 0)
    copied = gpu.counts["download"], gpu.counts["upload"]
    weights = len(open_plan(plan).program.weights)
    resident = (0, weights + 1)
    assert copied == (resident if transfers == "--no-transfers" else (runs, weights + runs))
    assert not gpu.counts["copy"]


def test_bench_for_people_names_floors_and_the_gpu(
    line: RealLine, plan: Path, gpu: NullDevice
) -> None:
    gpu.target = describe("cuda:sm90")  # type: ignore[assignment]
    out, _ = line.run("bench", plan, "--iterations", 3, "--layers")
    assert "GPU 0 (h200), 1 streams, CUDA graphs, inputs and outputs on the device" in out
    assert "as measured by copying, 989 TFLOP/s by the data sheet" in out
    assert "items/s" in out and "floor" in out
    assert (
        "--peer is for engines of a CPU"
        in line.run("bench", plan, "--peer", "onnxruntime", "--model", line.network, code=2)[1]
    )


def test_floors_count_each_tensor_once_and_every_multiplication(line: RealLine, plan: Path) -> None:
    program, sizes = open_plan(plan).program, {"batch": 2}
    target = describe("cuda:sm90")
    assert isinstance(target, CudaTarget)
    index = next(i for i, layer in enumerate(program.layers) if layer.name.startswith("add2"))
    steps = [step for step in program.steps if getattr(step, "layer", -1) == index]
    kind = program.layers[index].kind
    flops, nbytes, floor = gpu_layers.least_work(program, kind, steps, sizes, 1e12, target)
    pixels, channels = 2 * 16 * 16, 8
    # Its input, which is the residual too, and its output; 3 x 3 filters.
    assert flops is not None and nbytes is not None and floor is not None
    assert flops >= 2 * pixels * channels * channels * 9
    assert nbytes >= 2 * 2 * pixels * channels + 2 * channels * channels * 9
    assert nbytes < 3 * 2 * pixels * channels + 64 * channels * channels * 9
    assert floor == pytest.approx(max(nbytes / 1e12, flops / 989e12))


def test_doctor_speaks_of_gpus_without_one(line: RealLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_health, "_why_no_gpu", lambda: "there is no NVIDIA driver")
    for name, check in gpu_health.GPU_CHECKS.items():
        finding = check(name)
        assert finding.state == ("limited" if name == "gpu driver" else "fine"), finding
    monkeypatch.setattr(gpu_health, "_why_no_gpu", lambda: "")
    missing = gpu_health._part(_fails, "cudnn", "to measure its convolutions")("cudnn")
    assert missing.state == "limited" and "pip install 'enginefarm[cudnn]'" in missing.text


def _fails() -> str:
    raise MissingExtraError("nvidia-cudnn-cu13", "cudnn", "a layer by cuDNN")


# On a GPU -----------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_everything_on_a_gpu(tmp_path: Path) -> None:
    line = RealLine(tmp_path)
    words = ("--target", "cuda", "--precision", "fp16", "--level", 1, *SHAPE)
    made = line.outcome("build", line.network, *words)
    assert made["answer"] == "built" and made["report"]["check"]["compared"] == 1
    assert line.outcome("build", line.network, *words)["answer"] == "hit"
    file = made["file"]
    compared = line.outcome("compare", line.network, *words, "--against", "meaning", "--layers")
    assert compared["within"] and compared["layers"]
    assert line.outcome("run", file, "--random")["outputs"]["y"]["not_finite"] == 0
    for flags in ((), ("--transfers",), ("--no-graph",), ("--streams", 2)):
        found = line.outcome("bench", file, "--seconds", 0.2, "--layers", *flags)
        assert 0 < found["back_to_back"] < 0.1 and 1e11 < found["bandwidth"] < 2e13
    doctor = line.outcome("doctor")
    states = {item["check"]: item["state"] for item in doctor["findings"]}
    assert states["gpu driver"] == states["gpus"] == states["gpu self-test"] == "fine"
    assert shutil.which("nvidia-smi")
