"""Matrix products by cuBLASLt, with an algorithm that was chosen when the plan was built.

cuBLASLt thinks in columns. A row-major [rows, columns] matrix is a [columns, rows] one to it, so a
product Y = A B is asked for as Y^T = B^T A^T: our B is its first operand, and a bias per column of
Y is its bias per row. Sizes and strides are in elements.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from engine.cuda import cublaslt_functions as lt
from engine.errors import KernelError
from engine.plan.fields import choice, entries, integer, refuse, text
from engine.target import CudaTarget

__all__ = ["CublasLt", "MatmulCall", "MatmulSizes", "PreparedMatmul"]

_WHERE = "a call of cublaslt"
_MOST = 1 << 40
_MOST_WORKSPACE = 1 << 30
_NBYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: What a call's operands must be multiples of, in bytes, where their strides allow it.
ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class MatmulSizes:
    """A product's sizes: rows, columns, inner; matrices; elements between rows and matrices.

    The strides are those of A, B, the residual and Y. B has ``inner`` rows, or ``columns`` rows
    when it is transposed. A matrix stride of 0 uses one matrix for all.
    """

    rows: int
    columns: int
    inner: int
    matrices: int
    a_row: int
    b_row: int
    residual_row: int
    y_row: int
    a_matrix: int
    b_matrix: int
    residual_matrix: int
    y_matrix: int

    def to_list(self) -> list[int]:
        """The numbers in the order in which a step lists them."""
        return list(asdict(self).values())

    @staticmethod
    def from_list(values: Sequence[int]) -> MatmulSizes:
        """Read what `to_list` wrote; PlanCorruptError for anything else."""
        names = list(MatmulSizes.__dataclass_fields__)
        if len(values) != len(names):
            refuse(_WHERE, f"found {len(values)} sizes, expected {len(names)}")
        least = [1] * 8 + [0] * 4
        read = [
            integer(int(value), f"{_WHERE}.{name}", low, _MOST)
            for name, value, low in zip(names, values, least)
        ]
        return MatmulSizes(*read)


@dataclass(frozen=True, slots=True)
class MatmulCall:
    """What a step's JSON says: y = activation(alpha * A B + bias + residual).

    ``dtype`` is A's and B's, ``result`` that of Y, bias and residual; sums are float32. Operands
    are A, B, the bias when there is one, the residual when there is one, Y. ``algorithm`` holds the
    library's own 64 bytes as hexadecimal digits and means something to ``version`` only.
    """

    dtype: str
    result: str
    transpose_b: bool
    alpha: float
    bias: bool
    residual: bool
    activation: str
    algorithm: str = ""
    workspace_nbytes: int = 0
    version: int = 0

    def to_json(self) -> dict[str, Any]:
        """The call as JSON."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> MatmulCall:
        """Read and check; PlanCorruptError says what is wrong."""
        names = list(MatmulCall.__dataclass_fields__)
        found = dict(zip(names, entries(dict(value), _WHERE, names)))
        for name in ("transpose_b", "bias", "residual"):
            if not isinstance(found[name], bool):
                refuse(f"{_WHERE}.{name}", "expected true or false")
        for name in ("dtype", "result"):
            choice(found[name], f"{_WHERE}.{name}", tuple(lt.DATA_TYPES))
        choice(found["activation"], f"{_WHERE}.activation", tuple(lt.EPILOGUES))
        alpha = found["alpha"]
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            refuse(f"{_WHERE}.alpha", "expected a number")
        found["alpha"] = float(alpha)
        if found["result"] not in (found["dtype"], "float32"):
            refuse(f"{_WHERE}.result", f"{found['result']} is no result of {found['dtype']}")
        digits = text(found["algorithm"], f"{_WHERE}.algorithm")
        if len(digits) != 128 or set(digits) - set("0123456789abcdef"):
            refuse(f"{_WHERE}.algorithm", "expected 128 hexadecimal digits")
        integer(found["workspace_nbytes"], f"{_WHERE}.workspace_nbytes", 0, _MOST_WORKSPACE)
        integer(found["version"], f"{_WHERE}.version", 0, 1 << 31)
        return MatmulCall(**found)

    def operand_nbytes(self, sizes: MatmulSizes) -> tuple[int, ...]:
        """How far each operand reaches from its address, in bytes."""

        def reach(rows: int, columns: int, row: int, matrix: int) -> int:
            return (sizes.matrices - 1) * matrix + (rows - 1) * row + columns

        width = _NBYTES[self.result]
        b = (sizes.columns, sizes.inner) if self.transpose_b else (sizes.inner, sizes.columns)
        whole = (sizes.rows, sizes.columns)
        found = [
            reach(sizes.rows, sizes.inner, sizes.a_row, sizes.a_matrix) * _NBYTES[self.dtype],
            reach(*b, sizes.b_row, sizes.b_matrix) * _NBYTES[self.dtype],
        ]
        if self.bias:
            found.append(sizes.columns * width)
        if self.residual:
            found.append(reach(*whole, sizes.residual_row, sizes.residual_matrix) * width)
        return *found, reach(*whole, sizes.y_row, sizes.y_matrix) * width


class CublasLt:
    """The library on the device whose primary context is current; implements `Library`."""

    def __init__(self) -> None:
        self._functions = lt.functions()
        try:
            self._handle = self._functions.create("cublasLtCreate")
        except KernelError as error:
            raise KernelError(
                f"cuBLASLt {self._functions.version} does not start ({error}); check that the "
                "driver is of CUDA 13 and that the device has free memory"
            ) from error

    @property
    def version(self) -> int:
        """The library's number, as 130002."""
        return self._functions.version

    def prepare(
        self, call: Mapping[str, Any], sizes: Sequence[int], target: CudaTarget
    ) -> PreparedMatmul:
        """Make a product ready; errors as `Library.prepare` says."""
        wanted = MatmulCall.from_json(call)
        shape = MatmulSizes.from_list(sizes)
        if wanted.version != self.version:
            raise KernelError(
                f"the plan's products were tuned with cuBLASLt {wanted.version} and this process "
                f"loads {self.version}; install that version of nvidia-cublas or build the plan "
                "again"
            )
        descriptors = Descriptors(self._functions, wanted, shape)
        try:
            return PreparedMatmul(self._functions, self._handle, descriptors)
        except BaseException:
            descriptors.close()
            raise

    def heuristics(
        self, call: MatmulCall, sizes: MatmulSizes, count: int, most_workspace: int
    ) -> list[lt.HeuristicResult]:
        """What the library would try for a product, the likeliest first."""
        functions = self._functions
        with ExitStack() as stack:
            descriptors = Descriptors(functions, call, sizes)
            stack.callback(descriptors.close)
            if call.bias:  # never followed here, but its alignment is looked at
                descriptors.set_bias(ALIGNMENT)
            preference = functions.create("cublasLtMatmulPreferenceCreate")
            stack.callback(functions.call, "cublasLtMatmulPreferenceDestroy", preference)
            wishes: list[tuple[int, Any]] = [
                (lt.MAX_WORKSPACE, ctypes.c_uint64(most_workspace)),
                # Parts added in float16 would lose what float32 sums are for.
                (lt.REDUCTION_MASK, ctypes.c_uint32(lt.REDUCTION_COMPUTE_TYPE)),
            ]
            wishes += [(name, ctypes.c_uint32(ALIGNMENT)) for name in lt.MIN_ALIGNMENTS]
            for name, value in wishes:
                functions.set("cublasLtMatmulPreferenceSetAttribute", preference, name, value)
            results = (lt.HeuristicResult * count)()
            found = ctypes.c_int(0)
            status = functions.status(
                "cublasLtMatmulAlgoGetHeuristic",
                self._handle,
                *descriptors.problem,
                preference,
                count,
                results,
                ctypes.byref(found),
            )
        if status == 15:  # NOT_SUPPORTED: no algorithm serves this product
            return []
        if status:
            raise KernelError(f"cuBLASLt's heuristics answered {functions.describe(status)}")
        return [results[i] for i in range(found.value) if results[i].state == 0]

    def configuration(self, algorithm: lt.Algorithm) -> dict[str, int]:
        """What is known of an algorithm, as the library's own numbers."""
        names = {"id": 0, "tile": 1, "split_k": 2, "stages": 6}
        known = {}
        for name, attribute in names.items():
            value, written = ctypes.c_int32(0), ctypes.c_size_t(0)
            status = self._functions.status(
                "cublasLtMatmulAlgoConfigGetAttribute",
                ctypes.byref(algorithm),
                attribute,
                ctypes.byref(value),
                ctypes.sizeof(value),
                ctypes.byref(written),
            )
            if status == 0 and written.value == ctypes.sizeof(value):
                known[name] = value.value
        return known

    def close(self) -> None:
        """Release the handle."""
        if self._handle:
            handle, self._handle = self._handle, 0
            self._functions.call("cublasLtDestroy", handle)


class Descriptors:
    """The operation and the four layouts of one product, in the library's column-major words."""

    def __init__(self, functions: lt.Functions, call: MatmulCall, sizes: MatmulSizes) -> None:
        self.call, self.sizes = call, sizes
        self._functions = functions
        self._owned = ExitStack()
        try:
            self.operation = self._operation()
            width, height = sizes.inner, sizes.columns
            b = (width, height) if call.transpose_b else (height, width)
            result = (sizes.columns, sizes.rows)
            self.first = self._layout(call.dtype, *b, sizes.b_row, sizes.b_matrix)
            self.second = self._layout(
                call.dtype, sizes.inner, sizes.rows, sizes.a_row, sizes.a_matrix
            )
            self.y = self._layout(call.result, *result, sizes.y_row, sizes.y_matrix)
            self.residual = (
                self._layout(call.result, *result, sizes.residual_row, sizes.residual_matrix)
                if call.residual
                else self.y
            )
        except BaseException:
            self._owned.close()
            raise

    @property
    def problem(self) -> tuple[int, int, int, int, int]:
        """Operation, then the layouts that the library calls A, B, C and D."""
        return self.operation, self.first, self.second, self.residual, self.y

    def _operation(self) -> int:
        functions, call = self._functions, self.call
        made = functions.create(
            "cublasLtMatmulDescCreate", lt.COMPUTE_FLOAT32, lt.DATA_TYPES["float32"]
        )
        self._owned.callback(functions.call, "cublasLtMatmulDescDestroy", made)
        epilogue = lt.EPILOGUES[call.activation]
        if call.bias:  # bias alone replaces the default of 1, relu and gelu take the bit besides
            epilogue = lt.EPILOGUE_BIAS | (0 if call.activation == "none" else epilogue)
        attributes: list[tuple[int, Any]] = [
            (lt.TRANSPOSE_A, ctypes.c_int32(1 if call.transpose_b else 0)),
            (lt.TRANSPOSE_B, ctypes.c_int32(0)),
            (lt.EPILOGUE, ctypes.c_uint32(epilogue)),
        ]
        for name, value in attributes:
            functions.set("cublasLtMatmulDescSetAttribute", made, name, value)
        return made

    def _layout(self, dtype: str, rows: int, columns: int, leading: int, matrix: int) -> int:
        """A column-major matrix, ``leading`` elements between its columns."""
        functions = self._functions
        made = functions.create(
            "cublasLtMatrixLayoutCreate", lt.DATA_TYPES[dtype], rows, columns, leading
        )
        self._owned.callback(functions.call, "cublasLtMatrixLayoutDestroy", made)
        if self.sizes.matrices > 1:
            name = "cublasLtMatrixLayoutSetAttribute"
            functions.set(name, made, lt.BATCH_COUNT, ctypes.c_int32(self.sizes.matrices))
            functions.set(name, made, lt.BATCH_OFFSET, ctypes.c_int64(matrix))
        return made

    def set_bias(self, address: int) -> None:
        """Where the bias lies, on the device."""
        self._functions.set(
            "cublasLtMatmulDescSetAttribute",
            self.operation,
            lt.BIAS_POINTER,
            ctypes.c_void_p(address),
        )

    def close(self) -> None:
        """Release everything."""
        self._owned.close()


class PreparedMatmul:
    """A product with its algorithm checked for the device; implements `PreparedCall`."""

    def __init__(self, functions: lt.Functions, handle: int, descriptors: Descriptors) -> None:
        call = descriptors.call
        self._functions, self._handle, self._descriptors = functions, handle, descriptors
        self._algorithm = lt.Algorithm.from_buffer_copy(bytes.fromhex(call.algorithm))
        result = lt.HeuristicResult()
        status = functions.status(
            "cublasLtMatmulAlgoCheck",
            handle,
            *descriptors.problem,
            ctypes.byref(self._algorithm),
            ctypes.byref(result),
        )
        if status or result.state:
            raise KernelError(
                f"cuBLASLt does not run the plan's algorithm for {descriptors.sizes} on this "
                f"device ({functions.describe(status or result.state)}); build the plan again"
            )
        if result.workspace_nbytes > call.workspace_nbytes:
            raise KernelError(
                f"cuBLASLt needs {result.workspace_nbytes} bytes of workspace for "
                f"{descriptors.sizes}, the plan holds {call.workspace_nbytes}; build the plan again"
            )
        self.workspace_nbytes = int(result.workspace_nbytes)
        self.operand_nbytes = call.operand_nbytes(descriptors.sizes)
        self._alpha = ctypes.c_float(call.alpha)
        self._beta = ctypes.c_float(1.0 if call.residual else 0.0)
        self._bias = 0
        self._open = True

    def run(
        self, operands: Sequence[int], workspace: int, workspace_nbytes: int, stream: int
    ) -> None:
        """Enqueue the product; as `PreparedCall.run` says."""
        descriptors, call = self._descriptors, self._descriptors.call
        if not self._open:
            raise KernelError("a product by cuBLASLt was run after it was closed")
        if len(operands) != len(self.operand_nbytes) or workspace_nbytes < self.workspace_nbytes:
            raise KernelError(
                f"a product by cuBLASLt takes {len(self.operand_nbytes)} operands and "
                f"{self.workspace_nbytes} bytes of workspace, found {len(operands)} and "
                f"{workspace_nbytes}"
            )
        a, b, y = operands[0], operands[1], operands[-1]
        if call.bias and operands[2] != self._bias:
            self._bias = operands[2]
            descriptors.set_bias(self._bias)
        self._functions.call(
            "cublasLtMatmul",
            self._handle,
            descriptors.operation,
            ctypes.addressof(self._alpha),
            b,
            descriptors.first,
            a,
            descriptors.second,
            ctypes.addressof(self._beta),
            operands[-2] if call.residual else y,
            descriptors.residual,
            y,
            descriptors.y,
            ctypes.byref(self._algorithm),
            workspace or None,
            workspace_nbytes,
            stream or None,
        )

    def close(self) -> None:
        """Release the descriptors."""
        if self._open:
            self._open = False
            self._descriptors.close()
