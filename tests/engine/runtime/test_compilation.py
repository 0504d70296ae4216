import ctypes
import os
import stat
import subprocess
import sys
import time

import pytest

from engine.errors import KernelError
from engine.kernels.isa import ISAS
from engine.runtime import compilation
from engine.runtime.compilation import Function, find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
GENERIC = ISAS["generic"]


def answer(name: str, number: int) -> Function:
    return Function(name, f"int {name}(void) {{ return {number}; }}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of the test's own, with the search for a compiler done anew."""
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path / "cache"))
    compilation._search.cache_clear()
    compilation._prepared.cache_clear()
    compilation._temporary_folder.cache_clear()
    yield tmp_path / "cache" / "c"
    monkeypatch.undo()
    compilation._search.cache_clear()
    compilation._prepared.cache_clear()
    compilation._temporary_folder.cache_clear()


def called(address: int) -> int:
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()


@needs_compiler
def test_functions_are_compiled_once_and_kept_privately(folder, monkeypatch):
    functions = [answer("one", 1), answer("two", 2)]
    assert not compilation.is_cached(functions, GENERIC)
    found = compilation.load(functions, GENERIC)
    assert (called(found["one"]), called(found["two"])) == (1, 2)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert compilation.is_cached(functions, GENERIC)
    monkeypatch.setattr(compilation, "_compile", None)
    monkeypatch.setattr(compilation, "_LIBRARIES", {})
    assert called(compilation.load(functions, GENERIC)["two"]) == 2


@needs_compiler
def test_an_altered_object_is_compiled_again(folder, monkeypatch):
    function = answer("altered", 3)
    compilation.load([function], GENERIC)
    (built,) = folder.glob("*.so")
    content = bytearray(built.read_bytes())
    content[100] ^= 1
    built.unlink()
    built.write_bytes(content)
    assert not compilation.is_cached([function], GENERIC)
    monkeypatch.setattr(compilation, "_LIBRARIES", {})
    assert called(compilation.load([function], GENERIC)["altered"]) == 3
    assert compilation.is_cached([function], GENERIC)


@needs_compiler
def test_the_key_covers_source_name_and_flags(folder):
    compiler = find_compiler()
    keys = {
        compilation.function_key(function, compiler, isa)
        for function in (answer("a", 1), answer("a", 2), answer("b", 1))
        for isa in (GENERIC, ISAS["avx2"])
    }
    assert len(keys) == 6


@needs_compiler
def test_a_refused_file_is_told_in_the_compilers_words(folder):
    with pytest.raises(KernelError, match="broken"):
        compilation.load([Function("broken", "int broken(void) { return nothing; }")], GENERIC)
    assert not list(folder.glob("*.so"))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@needs_compiler
def test_compiling_in_the_background_gives_a_future(folder):
    future = compilation.compile_in_background([answer("later", 4)], GENERIC)
    assert called(future.result(timeout=60)["later"]) == 4
    failing = compilation.compile_in_background([Function("bad", "?")], GENERIC)
    with pytest.raises(KernelError):
        failing.result(timeout=60)


@needs_compiler
def test_a_process_may_exit_while_kernels_compile(folder):
    program = (
        "from engine.runtime.compilation import *\n"
        "from engine.kernels.isa import ISAS\n"
        "import time\n"
        "body = 'int f%d(void) {' + 'asm(\"\");' * 400000 + 'return 1; }'\n"
        "files = [Function(f'f{i}', body % i) for i in range(8)]\n"
        "compile_in_background(files, ISAS['generic'])\n"
        "time.sleep(0.3)\n"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert time.monotonic() - started < 15
    assert not [path for path in folder.iterdir() if path.name.startswith(".compile")]


def test_without_a_compiler_the_reason_is_told(folder, monkeypatch):
    monkeypatch.setenv("ENGINEFARM_CC", "no-such-compiler")
    assert find_compiler() is None
    assert "no-such-compiler" in compilation.why_no_compiler()
    assert not compilation.is_cached([answer("x", 1)], GENERIC)
    with pytest.raises(KernelError, match="install gcc"):
        compilation.load([answer("x", 1)], GENERIC)


def test_a_folder_that_others_may_write_is_refused_with_one_warning(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="ENGINEFARM_CACHE") as caught:
        chosen = compilation.cache_folder()
    assert compilation.cache_folder() == chosen
    assert len(caught) == 1
    assert chosen != folder
    assert stat.S_IMODE(chosen.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_used_gives_a_temporary_folder(folder):
    folder.parent.write_text("a file where a folder should be")
    with pytest.warns(RuntimeWarning, match="this process only"):
        chosen = compilation.cache_folder()
    assert os.access(chosen, os.W_OK)
