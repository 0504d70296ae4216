"""Operators: what each one means, over types and arrays, without a graph.

One file per operator or close family; files are found by their folder.
"""

from engine.ops.operator import DOMAIN, Operator, find, known, register

__all__ = ["DOMAIN", "Operator", "find", "known", "register"]
