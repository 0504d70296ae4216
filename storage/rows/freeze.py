"""Turning a row into the frozen record of the same fields."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from storage.tables import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def freeze(row: Table, record: type[Record]) -> Record:
    """The record of a row; every field of the record is a column of the row."""
    return record(**{field.name: getattr(row, field.name) for field in fields(record)})


def escape_like(text: str) -> str:
    """Text for a LIKE pattern that matches itself only; the escape character is a backslash."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
