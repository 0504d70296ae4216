"""CPU kernels: generated C with a NumPy twin each, one file per kernel kind."""

from __future__ import annotations
