"""Compiling generated C on the machine that runs it, into a private per-user cache.

Each function is one shared object under its own key, so that models share functions. A key covers
the source, the flags, the compiler's identity and the processor's features. The folder is 0700 and
refused when somebody else could write to it; files are placed by rename, with their digest beside.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from engine.errors import KernelError
from engine.kernels.isa import Isa, compiler_flags, cpu_features, detect

__all__ = [
    "Compiler",
    "Function",
    "cache_folder",
    "compile_in_background",
    "find_compiler",
    "function_key",
    "is_cached",
    "load",
    "place",
    "why_no_compiler",
]

COMPILE_SECONDS = 120
#: Nice value of compilers while something else serves in their stead.
BACKGROUND_PRIORITY = 10
_CANDIDATES = ("cc", "gcc", "clang")


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler of this machine: its command line and what identifies its version."""

    command: tuple[str, ...]
    identity: str


@dataclass(frozen=True, slots=True)
class Function:
    """One external C function and the whole file that defines it."""

    name: str
    source: str


def _identity(path: Path, command: Sequence[str]) -> str:
    """Path, size, modification time and version, the version kept beside the cached objects."""
    status = path.stat()
    facts = f"{path} {status.st_size} {status.st_mtime_ns} {shlex.join(command[1:])}"
    note = cache_folder() / f"compiler-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.txt"
    try:
        return facts + "\n" + note.read_text()
    except (OSError, UnicodeDecodeError):
        pass
    answer = subprocess.run([*command, "--version"], capture_output=True, timeout=30, check=True)
    version = answer.stdout.decode(errors="replace").partition("\n")[0]
    place(note, version.encode())
    return facts + "\n" + version


@functools.cache
def _search() -> tuple[Compiler | None, str]:
    """The compiler, or None and the reason."""
    chosen = os.environ.get("ENGINEFARM_CC")
    reasons = []
    for candidate in [chosen] if chosen is not None else _CANDIDATES:
        command = shlex.split(candidate)
        found = shutil.which(command[0]) if command else None
        if found is None:
            reasons.append(f"{candidate or 'an empty name'} is not on PATH")
            continue
        try:
            resolved = (found, *command[1:])
            return Compiler(resolved, _identity(Path(found).resolve(), resolved)), ""
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{found} does not tell its version ({error})")
    source = "ENGINEFARM_CC" if chosen is not None else "a C compiler"
    return None, f"looked for {source}: " + ", ".join(reasons)


def find_compiler() -> Compiler | None:
    """The compiler named by ENGINEFARM_CC, else cc, gcc or clang; None when there is none."""
    return _search()[0]


def why_no_compiler() -> str:
    """A sentence saying what was looked for; empty when a compiler was found."""
    return _search()[1]


def _is_private(folder: Path) -> bool:
    """Whether the folder is ours and nobody else may write to it."""
    status = folder.lstat()
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and os.access(folder, os.W_OK | os.X_OK)
    )


@functools.cache
def _temporary_folder(reason: str) -> Path:
    """A private folder for this process, announced once."""
    folder = Path(tempfile.mkdtemp(prefix="enginefarm-c-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        f"{reason}; compiled kernels go to {folder} for this process only "
        "(set ENGINEFARM_CACHE to a folder of yours to keep them)",
        RuntimeWarning,
        stacklevel=2,
    )
    return folder


def cache_folder(kind: str = "c") -> Path:
    """Where compiled objects are kept: ENGINEFARM_CACHE or the user's cache folder, mode 0700.

    Objects of each ``kind`` have a folder of their own.
    """
    chosen = os.environ.get("ENGINEFARM_CACHE")
    parent = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("enginefarm"))
    return _prepared(parent / kind)


@functools.cache
def _prepared(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(folder):
            return folder
        reason = f"{folder} belongs to somebody else or can be written by others"
    except OSError as error:
        reason = f"{folder} cannot be used ({error.strerror})"
    return _temporary_folder(reason)


def function_key(function: Function, compiler: Compiler, isa: Isa) -> str:
    """The cache key of a function: 40 hexadecimal digits."""
    parts = (
        function.name,
        function.source,
        " ".join(compiler_flags(isa)),
        compiler.identity,
        " ".join(cpu_features()),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def place(path: Path, content: bytes) -> None:
    """Write a file aside and rename it, so that readers see all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _verified(path: Path) -> bool:
    """Whether an object is there and has the digest written beside it."""
    try:
        expected = path.with_suffix(".sha256").read_text()
        return hashlib.sha256(path.read_bytes()).hexdigest() == expected
    except (OSError, UnicodeDecodeError):
        return False


def _compile(function: Function, compiler: Compiler, isa: Isa, path: Path) -> None:
    """Compile one file to a shared object; raises KernelError with the compiler's words."""
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=".compile-"))
    built = folder / "kernel.so"
    command = [*compiler.command, *compiler_flags(isa), "-x", "c", "-", "-o", str(built), "-lm"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _RUNNING[process] = folder
        try:
            _, words = process.communicate(function.source.encode(), COMPILE_SECONDS)
        finally:
            process.kill()
            _RUNNING.pop(process, None)
        if process.returncode != 0:
            told = words.decode(errors="replace").strip()[-2000:]
            raise KernelError(f"{compiler.command[0]} refused {function.name}: {told}")
        content = built.read_bytes()
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"{compiler.command[0]} could not be run: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    place(path, content)
    place(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest().encode())


_RUNNING: dict[subprocess.Popen[bytes], Path] = {}


@atexit.register
def _stop_compilers() -> None:
    """End compilers that still run when the process exits, and remove what they were writing."""
    for process, folder in list(_RUNNING.items()):
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _compile_all(
    jobs: Sequence[tuple[Function, Path]], compiler: Compiler, isa: Isa, width: int
) -> None:
    """Compile with several processes; raises the first error after all have ended.

    The threads are daemons, so that a process may exit while kernels compile in the background.
    """
    queue = list(jobs)
    errors: list[BaseException] = []

    def work() -> None:
        while queue:
            try:
                function, path = queue.pop()
            except IndexError:
                return
            try:
                _compile(function, compiler, isa, path)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(width, len(queue)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


_LIBRARIES: dict[str, ctypes.CDLL] = {}
_LOCK = threading.Lock()


def _open(path: Path, name: str) -> int:
    """The address of a function; its shared object stays loaded for the life of the process."""
    with _LOCK:
        library = _LIBRARIES.get(path.name)
        if library is None:
            library = _LIBRARIES[path.name] = ctypes.CDLL(str(path))
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    if address is None:
        raise KernelError(f"{path} does not define {name}")
    return address


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require() -> Compiler:
    compiler = find_compiler()
    if compiler is None:
        raise KernelError(f"no C compiler ({why_no_compiler()}); install gcc or set ENGINEFARM_CC")
    return compiler


def is_cached(functions: Sequence[Function], isa: Isa | None = None) -> bool:
    """Whether `load` would compile nothing."""
    compiler, isa = find_compiler(), isa or detect()
    if compiler is None:
        return False
    folder = cache_folder()
    return all(_verified(folder / f"{function_key(f, compiler, isa)}.so") for f in functions)


def load(
    functions: Sequence[Function], isa: Isa | None = None, *, processes: int | None = None
) -> Mapping[str, int]:
    """Addresses of functions by name, compiled first where the cache lacks them.

    Several compilers run at once. Raises KernelError when there is no compiler or one refuses.
    """
    compiler, isa, folder = _require(), isa or detect(), cache_folder()
    paths = {f.name: folder / f"{function_key(f, compiler, isa)}.so" for f in functions}
    known = {name: path for name, path in paths.items() if path.name in _LIBRARIES}
    missing = {f.name: f for f in functions if f.name not in known and not _verified(paths[f.name])}
    if missing:
        jobs = [(function, paths[name]) for name, function in missing.items()]
        _compile_all(jobs, compiler, isa, processes or _processors())
    return {name: _open(path, name) for name, path in paths.items()}


def compile_in_background(
    functions: Sequence[Function], isa: Isa | None = None
) -> Future[Mapping[str, int]]:
    """`load` in a daemon thread; an error is kept in the future.

    Compilers run at a lower priority (where threads have one of their own), since what serves in
    the meantime needs the processors too.
    """
    future: Future[Mapping[str, int]] = Future()

    def work() -> None:
        try:
            if sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_PRIORITY)
            future.set_result(load(functions, isa))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="enginefarm-compile", daemon=True).start()
    return future
