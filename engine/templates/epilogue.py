"""What a contraction does to a tile of its sums, independent of the template that made them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.cuda.triton_expression import operand_text, print_expression
from engine.ir.sizes import Dim
from engine.ir.types import DType
from engine.ops.expression import Expression

__all__ = ["Extra", "Tail", "operand_name"]


@dataclass(frozen=True, slots=True)
class Extra:
    """One operand of an epilogue: how it varies, its type, and how a kernel reads it.

    ``kind`` is "column", "row", "full" or "scalar"; ``pitch`` is the number of elements between
    rows of a "full" operand; ``boxed`` says that a tensor map delivers its tiles.
    """

    kind: str
    dtype: DType
    pitch: Dim = 0
    boxed: bool = False


@dataclass(frozen=True, slots=True)
class Tail:
    """An epilogue with its operands: load 0 is the sum, load i operand ``extras[i - 1]``."""

    expression: Expression
    extras: tuple[Extra, ...] = ()

    @property
    def element(self) -> str:
        """Triton's name of the result's element type."""
        return ELEMENT_NAMES[self.expression.dtype]

    def lines(
        self,
        sums: str,
        box: Callable[[str], str],
        *,
        row_mask: str = "",
        column_mask: str = "",
        prefix: str = "t",
        loaded: Collection[str] = (),
        at: Callable[[str], str] | None = None,
    ) -> tuple[list[str], str]:
        """Statements that turn the float32 tile ``sums`` into the result's tile, and its text.

        In scope are ``rows`` (64-bit where needed) and ``columns``, pointers called
        `operand_name`, and the pitch of a "full" operand as the same name with "_pitch". ``box``
        gives the text of the tile of an operand that comes by a tensor map. Masks are texts of
        conditions over one axis. Operands in ``loaded`` were loaded by `early_lines`;
        ``at`` gives the text of a "full" operand's addresses by its name.
        """
        texts = [sums]
        for place, extra in enumerate(self.extras, 1):
            name = operand_name(place)
            if name in loaded:
                texts.append(f"{name}_early")
            elif extra.boxed:
                texts.append(box(name))
            else:
                texts.append(
                    operand_text(
                        extra.kind,
                        name,
                        extra.dtype,
                        stride=f"{name}_pitch",
                        row_mask=row_mask,
                        column_mask=column_mask,
                        at=at(name) if at is not None else "",
                    )
                )
        return print_expression(self.expression, texts, prefix=prefix)

    def early_lines(self, names: Collection[str], *, column_mask: str = "") -> list[str]:
        """Statements that load "column" and "scalar" operands before the sums are there.

        ``columns`` must be in scope; an operand of another kind is left for `lines`.
        """
        found = []
        for place, extra in enumerate(self.extras, 1):
            name = operand_name(place)
            if name in names and extra.kind in ("column", "scalar"):
                text = operand_text(extra.kind, name, extra.dtype, column_mask=column_mask)
                found.append(f"{name}_early = {text}")
        return found

    def signature(self, box: Sequence[int]) -> list[tuple[str, str]]:
        """The parameters of the operands with their types; boxes have the shape ``box``."""
        shape = ", ".join(str(size) for size in box)
        return [
            (
                operand_name(place),
                f"tensordesc<{ELEMENT_NAMES[extra.dtype]}[{shape}]>"
                if extra.boxed
                else f"*{ELEMENT_NAMES[extra.dtype]}",
            )
            for place, extra in enumerate(self.extras, 1)
        ]


def operand_name(place: int) -> str:
    """The name of the parameter of operand ``place`` (from 1)."""
    return f"e{place}"
