"""The ONNX operators without a meaning of their own, each with its reason."""

from __future__ import annotations

__all__ = ["EXCLUSIONS"]

#: (domain, name) to the reason why no class is registered for it.
EXCLUSIONS: dict[tuple[str, str], str] = {
    ("ai.onnx.preview.training", "Gradient"): (
        "it names a part of the graph to differentiate; an inference engine computes no gradients"
    ),
}
