"""The few functions of libcublasLt that we call, typed; nothing here knows what is computed.

Written against ``cublasLt.h`` of cuBLAS 13; every number below is an enumerator's value there.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from engine.cuda.libraries import load_shared
from engine.errors import KernelError

__all__ = [
    "Algorithm",
    "BATCH_COUNT",
    "BATCH_OFFSET",
    "BIAS_POINTER",
    "COMPUTE_FLOAT32",
    "DATA_TYPES",
    "EPILOGUE",
    "EPILOGUE_BIAS",
    "EPILOGUES",
    "Functions",
    "HeuristicResult",
    "MAX_WORKSPACE",
    "MIN_ALIGNMENTS",
    "REDUCTION_COMPUTE_TYPE",
    "REDUCTION_MASK",
    "TRANSPOSE_A",
    "TRANSPOSE_B",
    "functions",
]

#: cudaDataType by element type.
DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
#: cublasComputeType_t: products summed in float32, float32 operands not rounded to TF32.
COMPUTE_FLOAT32 = 68
#: cublasLtMatmulDescAttributes_t.
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
#: cublasLtEpilogue_t without a bias, and the bit that adds one.
EPILOGUES = {"none": 1, "relu": 2, "gelu_tanh": 32}
EPILOGUE_BIAS = 4
#: cublasLtMatrixLayoutAttribute_t.
BATCH_COUNT, BATCH_OFFSET = 5, 6
#: cublasLtMatmulPreferenceAttributes_t; alignments in bytes of A, B, C, D.
MAX_WORKSPACE, REDUCTION_MASK = 1, 3
MIN_ALIGNMENTS = (5, 6, 7, 8)
#: cublasLtReductionScheme_t: parts of a split sum are added in the type of the accumulator.
REDUCTION_COMPUTE_TYPE = 2


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t, opaque words that hold for one version of the library."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace_nbytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


_ADDRESS, _INTEGER, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_OUT = ctypes.POINTER(ctypes.c_void_p)
_ATTRIBUTE = (_ADDRESS, _INTEGER, _ADDRESS, _SIZE)
#: Parameters of every function that answers with a status; arrays and structures go by address.
_PARAMETERS: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_OUT,),
    "cublasLtDestroy": (_ADDRESS,),
    "cublasLtMatmulDescCreate": (_OUT, _INTEGER, _INTEGER),
    "cublasLtMatmulDescDestroy": (_ADDRESS,),
    "cublasLtMatmulDescSetAttribute": _ATTRIBUTE,
    "cublasLtMatrixLayoutCreate": (
        _OUT,
        _INTEGER,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int64,
    ),
    "cublasLtMatrixLayoutDestroy": (_ADDRESS,),
    "cublasLtMatrixLayoutSetAttribute": _ATTRIBUTE,
    "cublasLtMatmulPreferenceCreate": (_OUT,),
    "cublasLtMatmulPreferenceDestroy": (_ADDRESS,),
    "cublasLtMatmulPreferenceSetAttribute": _ATTRIBUTE,
    # handle, operation, layouts of A, B, C, D, preference, wanted, results, found
    "cublasLtMatmulAlgoGetHeuristic": (
        *(_ADDRESS,) * 7,
        _INTEGER,
        ctypes.POINTER(HeuristicResult),
        ctypes.POINTER(_INTEGER),
    ),
    # handle, operation, layouts of A, B, C, D, algorithm, result
    "cublasLtMatmulAlgoCheck": (
        *(_ADDRESS,) * 6,
        ctypes.POINTER(Algorithm),
        ctypes.POINTER(HeuristicResult),
    ),
    # algorithm, attribute, buffer, its size, bytes written
    "cublasLtMatmulAlgoConfigGetAttribute": (
        ctypes.POINTER(Algorithm),
        _INTEGER,
        _ADDRESS,
        _SIZE,
        ctypes.POINTER(_SIZE),
    ),
    # handle, operation, alpha, A and layout, B and layout, beta, C and layout, D and layout,
    # algorithm, workspace, its bytes, stream
    "cublasLtMatmul": (
        *(_ADDRESS,) * 12,
        ctypes.POINTER(Algorithm),
        _ADDRESS,
        _SIZE,
        _ADDRESS,
    ),
}


class Functions:
    """The loaded library: `call` runs a function by name and raises what it answers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[str, Any] = {}
        for name, parameters in _PARAMETERS.items():
            function = getattr(library, name)
            function.argtypes = parameters
            function.restype = ctypes.c_int
            self._functions[name] = function
        library.cublasLtGetVersion.argtypes = ()
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        library.cublasLtGetStatusName.argtypes = (ctypes.c_int,)
        library.cublasLtGetStatusName.restype = ctypes.c_char_p
        self._status_name = library.cublasLtGetStatusName
        self.version = int(library.cublasLtGetVersion())

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function; its status, 0 for success."""
        return int(self._functions[name](*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; KernelError when it answers anything but success."""
        status = self.status(name, *arguments)
        if status:
            raise KernelError(f"{name} answered {self.describe(status)}")

    def describe(self, status: int) -> str:
        """The library's own name of a status."""
        text = self._status_name(status)
        return text.decode() if text else f"status {status}"

    def create(self, name: str, *arguments: Any) -> int:
        """Call a function that makes an object and writes its address first."""
        address = ctypes.c_void_p()
        self.call(name, ctypes.byref(address), *arguments)
        assert address.value is not None
        return address.value

    def set(self, name: str, made: int, attribute: int, value: Any) -> None:
        """Set an attribute of an object to a ctypes number."""
        self.call(name, made, attribute, ctypes.byref(value), ctypes.sizeof(value))


@functools.cache
def functions() -> Functions:
    """The library, loaded at the first use; MissingExtraError when it is not installed."""
    library = load_shared(
        "libcublasLt.so.13",
        ("nvidia/cu13/lib", "nvidia/cublas/lib"),
        package="nvidia-cublas",
        extra="cuda",
        purpose="a product by cuBLASLt",
    )
    return Functions(library)
