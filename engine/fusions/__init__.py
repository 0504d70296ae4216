"""Fusions: one rule per file, found by its folder and applied by `engine.passes`."""

from engine.fusions.fusion import Fusion, Match, Refused, apply_fusions, fusion

__all__ = ["Fusion", "Match", "Refused", "apply_fusions", "fusion"]
