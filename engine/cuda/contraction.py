"""What generated contractions share: how operands are passed, and what is done to a sum.

A kernel's parameters are the pointers a, b, x1, x2, ... (operands of the epilogue) and y, then its
own sizes, then the elements between rows of y ("y_row") and of each "full" operand ("x1_row").

Pointers to what other kernels write carry no ``__restrict__``: a compiler may move loads that it
believes constant for the whole kernel before the wait for those kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.cuda.c_expression import print_expression, read_text, storage_type, write_text
from engine.ir.types import DType
from engine.ops.expression import Expression

__all__ = ["CUDA_NAMES", "SumStore", "read_sum"]

#: What scalar parameters are called in CUDA C.
CUDA_NAMES = {"i32": "int", "i64": "long long", "f32": "float"}


@dataclass(frozen=True, slots=True)
class SumStore:
    """An epilogue over a float32 sum, its operands' kinds and element types.

    ``kinds`` are those of `engine.ops.fused`; raises ValueError where CUDA C lacks a type or a
    function.
    """

    epilogue: Expression
    kinds: tuple[str, ...]
    dtypes: tuple[DType, ...]

    def pointers(self) -> list[str]:
        """The C parameters of the operands and of the result."""
        operands = [
            f"const {storage_type(dtype)} *x{place}" for place, dtype in enumerate(self.dtypes, 1)
        ]
        return [*operands, f"{storage_type(self.epilogue.dtype)} *y"]

    def strides(self) -> list[str]:
        """The names of the strides, which are long: y's, then those of full operands."""
        full = [f"x{place}_row" for place, kind in enumerate(self.kinds, 1) if kind == "full"]
        return ["y_row", *full]

    def statements(self, total: str, row: str, column: str, prefix: str = "t") -> list[str]:
        """C text that stores what becomes of ``total`` at a row and a column (both numbers)."""
        loads = [total]
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            index = {
                "column": column,
                "row": row,
                "scalar": "0",
                "full": f"(long long){row} * x{place}_row + {column}",
            }[kind]
            loads.append(read_text(dtype, f"x{place}[{index}]"))
        lines, value = print_expression(self.epilogue, loads, prefix=prefix)
        stored = write_text(self.epilogue.dtype, value)
        return [*lines, f"y[(long long){row} * y_row + {column}] = {stored};"]


def read_sum(dtype: DType, element: str) -> str:
    """C text of an operand's element as a float32."""
    return f"(float){read_text(dtype, element)}"


def joined(lines: Sequence[str], indent: int) -> str:
    """Lines of C, each indented."""
    return "\n".join(" " * indent + line for line in lines)
