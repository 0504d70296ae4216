"""Compiling Triton text without a GPU: what a launch needs, equal bytes, and refusals."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.cuda.triton_compiler import compile_triton
from engine.plan.device import Null, Pointer, Scalar, TensorMap, TensorMapForm
from engine.tactics.triton_launch import parameters

SOURCE = """import triton
import triton.language as tl


@triton.jit
def scale(x, y, count, factor, WIDTH: tl.constexpr):
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = at < count
    tl.store(y + at, (tl.load(x + at, mask=inside) * factor).to(tl.float16), mask=inside)


@triton.jit
def move(source, sink, rows, WIDTH: tl.constexpr):
    row = tl.program_id(0) * 64
    sink.store([row, 0], source.load([row, 0]))


@triton.jit
def describe(x, WIDTH: tl.constexpr):
    made = tl.make_tensor_descriptor(x, [64, WIDTH], [WIDTH, 1], [64, WIDTH])
    made.store([0, 0], made.load([0, 0]) + 1.0)
"""
SCALE = DeviceKernel(
    "triton",
    "scale",
    SOURCE,
    128,
    signature=(("x", "*fp16"), ("y", "*fp16"), ("count", "i32"), ("factor", "fp32")),
    constants=(("WIDTH", 1024),),
    aligned=("x", "y"),
)
BOX = "tensordesc<fp16[64, 128]>"
MOVE = DeviceKernel(
    "triton",
    "move",
    SOURCE,
    256,
    signature=(("source", BOX), ("sink", BOX), ("rows", "i64")),
    constants=(("WIDTH", 128),),
    waits=True,
)


def compiled(kernel: DeviceKernel, capability: tuple[int, int] = (9, 0)) -> Compiled:
    found = compile_triton(kernel, capability)
    assert isinstance(found, Compiled), found
    return found


def disassembly(image: bytes, folder: Path, tool: str = "nvdisasm", *options: str) -> str:
    (folder / "kernel.cubin").write_bytes(image)
    import triton

    program = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    command = [str(program), *options, str(folder / "kernel.cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parameter_sizes(image: bytes, folder: Path) -> list[int]:
    """Bytes of the parameters in order, as the cubin lists them."""
    text = disassembly(image, folder, "cuobjdump", "-elf")
    rows = re.findall(r"Ordinal :\s*0x(\w+)\s+Offset\s*:\s*0x\w+\s+Size\s*:\s*0x(\w+)", text)
    return [int(size, 16) for _, size in sorted((int(n, 16), size) for n, size in rows)]


def bytes_of(parameter: object) -> int:
    if isinstance(parameter, TensorMap):
        return 128
    narrow = isinstance(parameter, Scalar) and parameter.kind in ("i32", "f32")
    return 4 if narrow else 8


def test_a_kernel_becomes_a_cubin_with_everything_a_launch_needs() -> None:
    found = compiled(SCALE, (8, 0))
    assert found.image[:4] == b"\x7fELF"
    assert (found.entry, found.threads, found.cluster, found.maps) == ("scale", 128, 1, ())
    assert not found.waits and found.spilled_nbytes == 0 and 0 < found.registers < 128


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_the_parameter_list_is_that_of_the_cubin(
    capability: tuple[int, int], tmp_path: Path
) -> None:
    listed = parameters(
        SCALE, {"x": Pointer(0), "y": Pointer(1, 8, True), "count": 1000, "factor": 0.5}
    )
    assert listed[2:4] == (Scalar("i32", 1000), Scalar("f32", 0.5))
    assert listed[-2:] == (Null(), Null())
    found = parameter_sizes(compiled(SCALE, capability).image, tmp_path)
    assert found == [bytes_of(item) for item in listed]


def test_a_tensor_map_is_followed_by_its_sizes_and_strides(tmp_path: Path) -> None:
    source, sink = TensorMap(0, 0, (96, 128), (128, 1), 9), TensorMap(1, 0, (96, 128), (256, 1), 9)
    listed = parameters(MOVE, {"source": source, "sink": sink, "rows": 96})
    assert [item.form for item in listed if isinstance(item, TensorMap)] == [0, 1]
    sizes = [Scalar("i32", 96), Scalar("i32", 128), Scalar("i64", 256), Scalar("i64", 1)]
    assert [*listed[6:10]] == sizes
    found = compiled(MOVE)
    assert parameter_sizes(found.image, tmp_path) == [bytes_of(item) for item in listed]
    # A row of 128 halves is two boxes of 128 bytes, the widest that are swizzled.
    assert found.maps == (TensorMapForm("float16", (64, 64), 128),) * 2
    assert found.waits and found.threads == 256
    text = disassembly(found.image, tmp_path)
    assert "UTMALDG" in text and "UTMASTG" in text


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_equal_kernels_give_equal_bytes(capability: tuple[int, int], monkeypatch: Any) -> None:
    first = compiled(MOVE, capability)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/nonexistent")
    monkeypatch.setenv("DISABLE_PTXAS_OPT", "1")
    assert compiled(MOVE, capability) == first  # another folder, other switches
    assert b"enginefarm-triton" not in first.image and b".py" not in first.image


def test_what_cannot_be_launched_is_refused_with_its_reason() -> None:
    refused = compile_triton(MOVE, (8, 0))
    assert isinstance(refused, Failure) and "9.0" in refused.reason
    made = replace(
        SCALE, entry="describe", signature=(("x", "*fp32"),), constants=(("WIDTH", 64),), aligned=()
    )
    refused = compile_triton(made, (9, 0))
    assert isinstance(refused, Failure) and "scratch" in refused.reason
    broken = replace(SCALE, source=SOURCE.replace("tl.arange", "tl.arrange"))
    refused = compile_triton(broken, (9, 0))
    assert isinstance(refused, Failure) and "arrange" in refused.reason
    stray = replace(SCALE, aligned=("z",))
    refused = compile_triton(stray, (9, 0))
    assert isinstance(refused, Failure) and "z" in refused.reason
    short = replace(SCALE, signature=SCALE.signature[:-1])
    refused = compile_triton(short, (9, 0))
    assert isinstance(refused, Failure) and "factor" in refused.reason


def test_arguments_that_do_not_fit_the_signature_are_named() -> None:
    good = {"x": Pointer(0), "y": Pointer(1), "count": 4, "factor": 1.0}
    with pytest.raises(ValueError, match="count"):
        parameters(SCALE, {key: value for key, value in good.items() if key != "count"})
    with pytest.raises(ValueError, match="'x'"):
        parameters(SCALE, {**good, "x": 3})
    flat = TensorMap(0, 0, (96,), (1,), 0)
    with pytest.raises(ValueError, match="sizes"):
        parameters(MOVE, {"source": flat, "sink": flat, "rows": 1})
