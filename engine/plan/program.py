"""The program of a plan: everything a context runs, as data; and its JSON, both ways."""

from __future__ import annotations

from engine.plan.checking import check_program
from engine.plan.decoding import program_from_json
from engine.plan.encoding import program_to_json
from engine.plan.guards import choose, hold
from engine.plan.operators import operator_from_json, operator_to_json
from engine.plan.recipes import RecipeStep
from engine.plan.slots import is_fixed, root_of, slot_symbols
from engine.plan.structure import (
    ChooseStep,
    Guard,
    HostFunction,
    HostStep,
    KernelStep,
    Layer,
    Place,
    Program,
    Relation,
    Slot,
    Source,
    Step,
    Symbol,
    Weight,
)

__all__ = [
    "ChooseStep",
    "Guard",
    "HostFunction",
    "HostStep",
    "KernelStep",
    "Layer",
    "Place",
    "Program",
    "RecipeStep",
    "Relation",
    "Slot",
    "Source",
    "Step",
    "Symbol",
    "Weight",
    "check_program",
    "choose",
    "hold",
    "is_fixed",
    "operator_from_json",
    "operator_to_json",
    "program_from_json",
    "program_to_json",
    "root_of",
    "slot_symbols",
]
