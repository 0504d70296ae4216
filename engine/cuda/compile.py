"""Kernels to cubins: a cache per user, and processes that compile what it lacks.

An entry is one file: a magic word, the SHA-256 of the rest, a line of JSON, the cubin. Its name is
the SHA-256 of everything the cubin depends on: kernel, compute capability, compiler and version.
Refusals by a compiler are entries too; crashes and time-outs are not. Files are placed by rename,
damaged ones are compiled anew, and the folder is kept under a bound by dropping what was used least
recently.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from engine.cuda.compile_worker import result_from_json, result_to_json
from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.errors import KernelError, MissingExtraError
from engine.runtime.compilation import cache_folder, place

__all__ = [
    "COMPILE_SECONDS",
    "MOST_NBYTES",
    "compile_kernels",
    "compiler_versions",
    "stop_compilers",
]

#: After this long a compiler is ended and the kernel given up.
COMPILE_SECONDS = 300.0
#: The greatest size of the cache; at the bound it is cut to three quarters.
MOST_NBYTES = 1 << 30
_MAGIC = b"EFcubin1"
#: Raise when the same kernel and compiler come to give other cubins (options, filters).
_REVISION = 1

Result = Compiled | Failure


@functools.cache
def compiler_versions() -> dict[str, str]:
    """Compilers that are installed and their versions: "nvrtc", "triton"."""
    found: dict[str, str] = {}
    with contextlib.suppress(MissingExtraError):
        from engine.cuda.nvrtc import nvrtc_version

        found["nvrtc"] = nvrtc_version()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["triton"] = importlib.metadata.version("triton")
    return found


def compile_kernels(
    kernels: Sequence[DeviceKernel],
    capability: tuple[int, int],
    *,
    workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """A cubin or a reason per kernel, in order; a kernel that spills registers is a failure.

    ``workers`` processes compile what the cache lacks, by default one per processor; they are kept
    for the next call (`stop_compilers` ends them). Calls from several threads share one per
    processor.
    ``report(done, total)`` is called in this thread, first with what the cache had. Raises
    MissingExtraError when a compiler is not installed.
    """
    folder = cache_folder("cubin")
    paths = {k.digest: folder / f"{_key(k, capability)}.cubin" for k in kernels}
    results: dict[str, Result] = {}
    missing: dict[str, DeviceKernel] = {}
    for kernel in kernels:
        if kernel.digest in results or kernel.digest in missing:
            continue
        found = _read(paths[kernel.digest])
        if found is None:
            missing[kernel.digest] = kernel
        else:
            results[kernel.digest] = found
    total = len(results) + len(missing)
    if report is not None:
        report(len(results), total)
    if missing:
        width = max(1, min(workers or _processors(), len(missing)))
        with ThreadPoolExecutor(width, thread_name_prefix="enginefarm-compile") as pool:
            jobs = {
                pool.submit(_compile_apart, kernel, capability, paths[digest]): digest
                for digest, kernel in missing.items()
            }
            try:
                for job in as_completed(jobs):
                    results[jobs[job]] = job.result()
                    if report is not None:
                        report(len(results), total)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _CREW.stop()
                raise
        _prune(folder)
    return [results[kernel.digest] for kernel in kernels]


def _key(kernel: DeviceKernel, capability: tuple[int, int]) -> str:
    version = compiler_versions().get(kernel.compiler, "missing")
    parts = (str(_REVISION), kernel.digest, f"{capability[0]}.{capability[1]}", version)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -------------------------------------------------------------------------------------------------
# The cache
# -------------------------------------------------------------------------------------------------


def _read(path: Path) -> Result | None:
    """An entry, marked as used now; None when there is none or it is damaged."""
    try:
        content = path.read_bytes()
        head = len(_MAGIC) + 32
        if not content.startswith(_MAGIC):
            return None
        if hashlib.sha256(content[head:]).digest() != content[len(_MAGIC) : head]:
            return None
        line, _, image = content[head:].partition(b"\n")
        result = result_from_json(json.loads(line), image)
        os.utime(path)
        return result
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, result: Result) -> None:
    image = result.image if isinstance(result, Compiled) else b""
    body = json.dumps(result_to_json(result), sort_keys=True).encode() + b"\n" + image
    # A full disk costs the next build time, not this one its result.
    with contextlib.suppress(OSError):
        place(path, _MAGIC + hashlib.sha256(body).digest() + body)


def _prune(folder: Path) -> None:
    """Drop what was used least recently when the cache is over its bound."""
    entries: list[tuple[float, int, str]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        for item in items:
            with contextlib.suppress(OSError):
                status = item.stat()
                entries.append((status.st_mtime, status.st_size, item.path))
    total = sum(size for _, size, _ in entries)
    if total <= MOST_NBYTES:
        return
    for _, size, path in sorted(entries):
        if total <= MOST_NBYTES * 3 // 4:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size


# -------------------------------------------------------------------------------------------------
# Processes that compile
# -------------------------------------------------------------------------------------------------


def _compile_apart(kernel: DeviceKernel, capability: tuple[int, int], path: Path) -> Result:
    """Compile one kernel in a process of the crew, and keep the result."""
    with _CREW.seats:
        return _compile_seated(kernel, capability, path)


def _compile_seated(kernel: DeviceKernel, capability: tuple[int, int], path: Path) -> Result:
    worker = _CREW.take()
    answer = worker.ask({"kernel": kernel.to_json(), "capability": list(capability)})
    if "crash" in answer:
        worker.stop()
        return Failure(f"compiling {kernel.entry} {answer['crash']}")
    _CREW.give_back(worker)
    if "missing" in answer:
        raise MissingExtraError(*answer["missing"])
    image = base64.b64decode(answer.pop("image", ""))
    result = result_from_json(answer, image)
    _write(path, result)
    return result


class _Worker:
    """One process; used by one thread at a time."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("engine")
        assert found is not None and found.submodule_search_locations is not None
        root = str(Path(next(iter(found.submodule_search_locations))).parent)
        inherited = os.environ.get("PYTHONPATH")
        paths = os.pathsep.join([root, inherited] if inherited else [root])
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine.cuda.compile_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
                text=True,
            )
        except OSError as error:
            raise KernelError(f"a process that compiles cannot be started: {error}") from error

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The process's answer, or {"crash": how it ended}."""
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(COMPILE_SECONDS, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if line.endswith("\n"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        except (OSError, ValueError):
            pass
        finally:
            timer.cancel()
        if late.is_set():
            return {"crash": f"took longer than {COMPILE_SECONDS:.0f} seconds"}
        status = process.wait()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return {"crash": f"ended its process with {how}"}

    def stop(self) -> None:
        """End the process and wait for its end."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _Crew:
    """Processes of this process, kept between calls: starting one costs as much as compiling."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self.lock = threading.Lock()
        self.seats = threading.BoundedSemaphore(_processors())
        self.idle: list[_Worker] = []
        self.all: set[_Worker] = set()

    def take(self) -> _Worker:
        """A process that is idle, or a new one."""
        with self.lock:
            while self.idle:
                worker = self.idle.pop()
                if worker.process.poll() is None:
                    return worker
                self.all.discard(worker)
        worker = _Worker()
        with self.lock:
            self.all.add(worker)
        return worker

    def give_back(self, worker: _Worker) -> None:
        """Keep a process for the next kernel."""
        with self.lock:
            self.idle.append(worker)

    def stop(self) -> None:
        """End all processes."""
        with self.lock:
            workers, self.all, self.idle = self.all, set(), []
        for worker in workers:
            worker.stop()


_CREW = _Crew()


def stop_compilers() -> None:
    """End the processes that `compile_kernels` keeps; a later call starts new ones."""
    _CREW.stop()


atexit.register(stop_compilers)
# The processes belong to the parent: a forked child starts its own.
os.register_at_fork(after_in_child=_CREW._renew)
