"""Tactics: ways to run a layer. One file per tactic, found by its folder."""

from engine.tactics.tactic import (
    Candidate,
    Refusal,
    Tactic,
    candidates,
    is_last_resort,
    register,
    restore,
)

__all__ = [
    "Candidate",
    "Refusal",
    "Tactic",
    "candidates",
    "is_last_resort",
    "register",
    "restore",
]
