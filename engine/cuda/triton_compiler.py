"""Triton as a compiler at build time: module text in, cubin and what a launch needs out.

Neither torch nor a GPU is needed. Checked against Triton 3.6, whose parameter list is described in
`engine.tactics.triton_launch`. Equal kernels give equal bytes: line information is left out, since
it holds the path of the module, and no environment variable of Triton's has a say in the passes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import linecache
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.errors import MissingExtraError
from engine.ir.types import DType
from engine.plan.device import TensorMapForm

__all__ = ["ELEMENT_NAMES", "compile_triton", "load_function"]

#: Triton's names of element types that a kernel may load and store.
ELEMENT_NAMES = {
    DType.FLOAT32: "fp32",
    DType.FLOAT16: "fp16",
    DType.BFLOAT16: "bf16",
    DType.FLOAT8E4M3FN: "fp8e4nv",
    DType.FLOAT8E5M2: "fp8e5",
    DType.INT64: "i64",
    DType.INT32: "i32",
    DType.INT16: "i16",
    DType.INT8: "i8",
    DType.UINT64: "u64",
    DType.UINT32: "u32",
    DType.UINT16: "u16",
    DType.UINT8: "u8",
    DType.BOOL: "i1",
}
_DTYPES = {name: dtype for dtype, name in ELEMENT_NAMES.items()}
_MODULE = "device_kernel"
_DESCRIPTOR = re.compile(r"tensordesc<(\w+)\[([\d, ]+)\]>")
_MOST_TENSOR_MEMORY = 512
#: Of Linux's personality(2).
_ASK, _ADDR_NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000
#: Triton's switches are global to a process.
_LOCK = threading.Lock()


def compile_triton(kernel: DeviceKernel, capability: tuple[int, int]) -> Compiled | Failure:
    """The cubin of a kernel for one compute capability, or why there is none.

    The source is a module that imports triton itself. Raises MissingExtraError without Triton;
    whatever Triton or its assembler refuses is a `Failure`. While it runs, the process's error
    stream and Triton's switches are its own: compile in child processes.
    """
    if kernel.compiler != "triton":
        raise ValueError(f"the kernel {kernel.entry!r} is for {kernel.compiler}, not for triton")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("triton", "triton", "compiling kernels for a GPU") from error
    described = any(_DESCRIPTOR.match(form) for _, form in kernel.signature)
    if described and capability < (9, 0):
        major, minor = capability
        return Failure(f"tensor maps need compute capability 9.0, this is {major}.{minor}")
    with _LOCK, tempfile.TemporaryDirectory(prefix="enginefarm-triton-") as folder:
        log = io.StringIO()
        try:
            with (
                _switches(folder),
                _same_addresses(),
                _errors_to(Path(folder) / "errors"),
                contextlib.redirect_stdout(log),
            ):
                result = _compile(kernel, capability, Path(folder))
        except Exception as error:  # the compiler's own errors have no common base
            said = (Path(folder) / "errors").read_text(encoding="utf-8", errors="replace")
            return Failure(_reason(error, said))
        return _described(kernel, result, log.getvalue())


def load_function(kernel: DeviceKernel, folder: Path) -> Any:
    """The jitted function of a kernel's module, which is written into ``folder``."""
    path = folder / f"{_MODULE}.py"
    path.write_text(kernel.source, encoding="utf-8")
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, kernel.entry)


@contextlib.contextmanager
def _switches(folder: str) -> Iterator[None]:
    """Triton's switches as every build has them; the cache lies in ``folder``."""
    from triton import knobs

    with (
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        knobs.runtime.scope(),
    ):
        knobs.cache.dir = f"{folder}/cache"
        for name in ("override", "dump_ir", "dump_ir_extract_di_local_variables", "enable_asan"):
            setattr(knobs.compilation, name, False)
        knobs.compilation.disable_line_info = True
        knobs.compilation.store_binary_only = True
        knobs.compilation.allow_non_constexpr_globals = False
        knobs.nvidia.disable_ptxas_opt = False
        knobs.nvidia.dump_ptxas_log = True
        knobs.runtime.interpret = False
        yield


@contextlib.contextmanager
def _errors_to(path: Path) -> Iterator[None]:
    """What the compiler's C++ writes to the process's error stream goes to a file."""
    sys.stderr.flush()
    before = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextlib.contextmanager
def _same_addresses() -> Iterator[None]:
    """Start child processes without randomised addresses, where the system allows that.

    The assembler for 10.0 (of CUDA 12.9) numbers registers by where its objects lie: without this
    one program in three comes out with two registers exchanged.
    """
    try:
        personality = ctypes.CDLL(None).personality
    except (OSError, AttributeError):  # no Linux
        yield
        return
    personality.argtypes, personality.restype = [ctypes.c_ulong], ctypes.c_int
    before = personality(_ASK)
    if before >= 0:
        personality(before | _ADDR_NO_RANDOMIZE)
    try:
        yield
    finally:
        if before >= 0:
            personality(before)


def _compile(kernel: DeviceKernel, capability: tuple[int, int], folder: Path) -> Any:
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = load_function(kernel, folder)
    try:
        names = list(function.arg_names)
        constants = dict(kernel.constants)
        types = {**dict(kernel.signature), **dict.fromkeys(constants, "constexpr")}
        if set(types) != set(names):
            odd = ", ".join(sorted(set(types) ^ set(names)))
            raise ValueError(f"the function and its description disagree about {odd}")
        ordered = [name for name in names if name not in constants]
        if ordered != [name for name, _ in kernel.signature]:
            raise ValueError(f"the signature has another order than the function: {ordered}")
        stray = sorted({*kernel.aligned} - {*ordered})
        if stray:
            raise ValueError(f"{', '.join(stray)} is said to be aligned and is no parameter")
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned}
        source = ASTSource(function, {name: types[name] for name in names}, constants, attributes)
        options: dict[str, Any] = {
            "num_warps": kernel.threads // 32,
            "num_ctas": 1,
            "enable_fp_fusion": True,
            "ptx_options": None,
            "debug": False,
            "sanitize_overflow": False,
        }
        if kernel.stages:
            options["num_stages"] = kernel.stages
        major, minor = capability
        return compile_source(source, GPUTarget("cuda", major * 10 + minor, 32), options)
    finally:
        linecache.cache.pop(str(folder / f"{_MODULE}.py"), None)


def _described(kernel: DeviceKernel, result: Any, log: str) -> Compiled | Failure:
    """What a launch has to know, or the reason why the runtime cannot launch this cubin."""
    metadata = result.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        return Failure(
            f"the kernel needs {metadata.global_scratch_size} bytes of global scratch per block; "
            "make its tensor descriptors on the host"
        )
    if (metadata.tmem_size or 0) > _MOST_TENSOR_MEMORY:
        return Failure(f"the kernel needs {metadata.tmem_size} columns of tensor memory")
    forms = _forms(kernel, metadata.tensordesc_meta)
    if isinstance(forms, Failure):
        return forms
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill stores", log)]
    frames = [int(count) for count in re.findall(r"(\d+) bytes stack frame", log)]
    if not registers or not spills:
        return Failure("the assembler did not say how many registers the kernel takes")
    return Compiled(
        image=bytes(result.asm["cubin"]),
        entry=str(metadata.name),
        threads=32 * int(metadata.num_warps),
        shared_nbytes=int(metadata.shared),
        cluster=int(metadata.num_ctas),
        maps=forms,
        waits=kernel.waits,
        registers=max(registers),
        spilled_nbytes=max(*spills, *frames),
    )


def _forms(kernel: DeviceKernel, found: Any) -> tuple[TensorMapForm, ...] | Failure:
    """How the kernel reads each tensor map, in the order of its parameters."""
    described = [form for _, form in kernel.signature if form.startswith("tensordesc")]
    if len(found or ()) != len(described):
        return Failure(f"the kernel has {len(described)} tensor maps, found {len(found or ())}")
    forms = []
    for text, row in zip(described, found or ()):
        match = _DESCRIPTOR.match(text)
        if match is None or match[1] not in _DTYPES:
            return Failure(f"no tensor map is described by {text!r}")
        dtype = _DTYPES[match[1]]
        if row["fp4_padded"] or row["elem_size"] != dtype.nbytes:
            return Failure(f"the compiler reads {text} as elements of {row['elem_size']} bytes")
        swizzle = (0, 32, 64, 128)[row["swizzle"]]
        forms.append(TensorMapForm(dtype.value, tuple(row["block_size"]), swizzle))
    return tuple(forms)


def _reason(error: Exception, said: str) -> str:
    """One line of an error of Triton's; it repeats the whole program otherwise."""
    causes = [text.strip() for text in re.findall(r"error: (.+)", said)]
    if causes:
        telling = [text for text in causes if not text.startswith("Failures have been detected")]
        stage = re.search(r"while executing \[(.+?)\]", said)
        where = f" in {stage[1]}" if stage is not None else ""
        return f"{type(error).__name__}{where}: {(telling or causes)[0]}"[:400]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = [line for line in lines if "error" in line.lower()] or lines
    return f"{type(error).__name__}: {' '.join(wanted[:3])}"[:400]
