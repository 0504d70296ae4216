"""Compiling for GPUs without one: NVRTC, the cache, processes that crash."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.cuda import compile as compiling
from engine.cuda.compile import compile_kernels, compiler_versions
from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.cuda.nvrtc import architecture_of, compile_nvrtc
from engine.errors import KernelError
from engine.runtime import compilation

CAPABILITIES = [(8, 0), (9, 0), (10, 0)]


def kernel(
    body: str = "y[threadIdx.x] = 1.0f;", threads: int = 128, **rest: object
) -> DeviceKernel:
    source = f'extern "C" __global__ void __launch_bounds__({threads}) f(float *y) {{ {body} }}'
    return DeviceKernel("nvrtc", "f", source, threads, **rest)  # type: ignore[arg-type]


SPILLING = kernel(
    "float a[200]; for (int i = 0; i < 200; ++i) a[i] = y[i * threadIdx.x];"
    "for (int j = 0; j < 4; ++j) for (int i = 0; i < 200; ++i) a[i] += a[(i + 7) % 200] * y[j];"
    "for (int i = 0; i < 200; ++i) y[i * threadIdx.x] = a[i];",
    threads=1024,
)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path))
    return tmp_path / "cubin"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.cubin"))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_cubin_says_what_it_uses(capability: tuple[int, int]) -> None:
    body = "__shared__ float s[128]; s[threadIdx.x] = y[threadIdx.x]; __syncthreads();"
    body += "y[threadIdx.x] = s[threadIdx.x ^ 1];"
    found = compile_nvrtc(kernel(body, shared_nbytes=64, waits=True), capability)
    assert found.image.startswith(b"\x7fELF")
    assert (found.entry, found.threads, found.shared_nbytes) == ("f", 128, 64)
    assert 0 < found.registers < 64
    assert found.spilled_nbytes == 0
    assert found.waits == (capability >= (9, 0))


def test_machine_code_is_named_by_what_the_architecture_has() -> None:
    names = [architecture_of(item) for item in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))]
    assert names == ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (kernel("y[0] = z;"), r'f\.cu\(1\): error: identifier "z" is undefined'),
        (kernel('asm volatile("no.such;");'), "ptxas.*error"),
        (DeviceKernel("nvrtc", "g", kernel().source, 128), "no kernel called 'g'"),
        (kernel(shared_nbytes=228 << 10), "bytes of shared memory, a block may have"),
    ],
)
def test_a_refusal_tells_the_first_error(wrong: DeviceKernel, told: str) -> None:
    with pytest.raises(KernelError, match=told):
        compile_nvrtc(wrong, (9, 0))


def test_equal_sources_give_equal_bytes_in_other_processes() -> None:
    """The assembler must not depend on addresses, which differ from process to process."""
    code = (
        "import hashlib; from engine.cuda.nvrtc import compile_nvrtc as c;"
        "from tests.engine.cuda.test_compile import SPILLING as k, CAPABILITIES;"
        "print(*(hashlib.sha256(c(k, item).image).hexdigest() for item in CAPABILITIES))"
    )
    root = Path(__file__).parents[3]
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1


def test_results_keep_their_order_and_the_cache_serves_the_second_call(empty_cache: Path) -> None:
    kernels = [kernel(f"y[0] = {i}.0f;") for i in range(4)] + [kernel("y[0] = 0.0f;"), SPILLING]
    told: list[tuple[int, int]] = []
    first = compile_kernels(kernels, (9, 0), workers=2, report=lambda *item: told.append(item))
    assert told == [(done, 5) for done in range(6)]
    assert isinstance(first[5], Failure)
    assert "spills" in first[5].reason
    assert all(isinstance(item, Compiled) for item in first[:5])
    assert first[0] == first[4]
    assert len({item.image for item in first[:5] if isinstance(item, Compiled)}) == 4
    assert first[2] == compile_nvrtc(kernels[2], (9, 0))
    assert stat.S_IMODE(empty_cache.stat().st_mode) == 0o700
    assert len(entries(empty_cache)) == 5
    told.clear()
    compiling._CREW.stop()
    assert compile_kernels(kernels, (9, 0), report=lambda *item: told.append(item)) == first
    assert told == [(5, 5)]
    assert not compiling._CREW.all, "the cache had everything, and yet a process was started"


def test_calls_of_several_threads_share_the_processors(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def seated(*_: object) -> Failure:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return Failure("counted")

    monkeypatch.setattr(compiling, "_compile_seated", seated)
    monkeypatch.setattr(compiling, "_processors", lambda: 3)
    monkeypatch.setattr(compiling, "_CREW", compiling._Crew())
    kernels = [[kernel(f"y[{call}] = {i}.0f;") for i in range(8)] for call in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda items: compile_kernels(items, (9, 0)), kernels):
            assert found == [Failure("counted")] * 8
    assert most == 3


def test_other_devices_and_compilers_have_entries_of_their_own(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_kernels([kernel()], (9, 0))
    compile_kernels([kernel()], (8, 0))
    monkeypatch.setattr(compiling, "compiler_versions", lambda: {"nvrtc": "0.0"})
    compile_kernels([kernel()], (9, 0))
    assert len(entries(empty_cache)) == 3


def test_a_damaged_entry_is_compiled_anew(empty_cache: Path) -> None:
    expected = compile_kernels([kernel()], (9, 0))
    (path,) = entries(empty_cache)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], b"{}\n"):
        path.write_bytes(damaged)
        assert compile_kernels([kernel()], (9, 0)) == expected
        assert path.read_bytes() == whole


def test_the_cache_drops_what_was_used_least_recently(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, used = kernel("y[0] = 1.0f;"), kernel("y[0] = 2.0f;")
    compile_kernels([old, used], (9, 0))
    for path in entries(empty_cache):
        os.utime(path, (1.0, 1.0))
    compile_kernels([used], (9, 0))
    sizes = [path.stat().st_size for path in entries(empty_cache)]
    monkeypatch.setattr(compiling, "MOST_NBYTES", 2 * max(sizes) + max(sizes) // 2)
    compile_kernels([kernel("y[0] = 3.0f;")], (9, 0))
    before = set(entries(empty_cache))
    assert len(before) == 1
    compile_kernels([old], (9, 0))
    assert len(set(entries(empty_cache)) - before) == 1


def test_a_crash_or_a_hang_costs_its_kernel_alone(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers find a compiler that ends its process, or never answers, for marked sources."""
    module = tmp_path / "sitecustomize.py"
    module.write_text(
        "import os, time\n"
        "import engine.cuda.nvrtc as nvrtc\n"
        "real = nvrtc.compile_nvrtc\n"
        "def compile_nvrtc(kernel, capability):\n"
        "    if 'crash' in kernel.source: os.kill(os.getpid(), 11)\n"
        "    if 'hang' in kernel.source: time.sleep(60)\n"
        "    return real(kernel, capability)\n"
        "nvrtc.compile_nvrtc = compile_nvrtc\n"
    )
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    monkeypatch.setattr(compiling, "COMPILE_SECONDS", 8.0)
    compiling._CREW.stop()
    kernels = [kernel("y[0] = 5.0f;"), kernel("/* crash */"), kernel("/* hang */"), kernel()]
    try:
        found = compile_kernels(kernels, (9, 0), workers=2)
    finally:
        compiling._CREW.stop()
    assert isinstance(found[0], Compiled)
    assert isinstance(found[3], Compiled)
    assert found[1] == Failure("compiling f ended its process with signal 11")
    assert found[2] == Failure("compiling f took longer than 8 seconds")
    assert len(entries(empty_cache)) == 2, "a crash or a hang is not kept"


def test_a_fault_of_a_compiler_in_python_is_told(empty_cache: Path) -> None:
    wrong = DeviceKernel("nvrtc", "f", "\ud800", 128)
    (found,) = compile_kernels([wrong], (9, 0))
    assert isinstance(found, Failure)
    assert "UnicodeEncodeError" in found.reason
    assert not entries(empty_cache)


def test_versions_name_what_is_installed() -> None:
    versions = compiler_versions()
    assert versions["nvrtc"].count(".") == 2
    assert set(versions) <= {"nvrtc", "triton"}


def test_the_folder_of_cubins_is_not_that_of_c(empty_cache: Path) -> None:
    assert compilation.cache_folder("cubin") == empty_cache
    assert compilation.cache_folder() == empty_cache.parent / "c"
