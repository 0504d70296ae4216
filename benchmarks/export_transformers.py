"""Export the graphs of BERT-base, GPT-2 and ViT-B/16 without their weights.

The graphs lie in ``benchmarks/models`` and `benchmarks.models` fills them from a seed, so only who
wants to change them runs this. It needs torch and transformers, best in an environment of their
own, and downloads no weights::

    python3 -m venv ~/.cache/export-venv
    ~/.cache/export-venv/bin/pip install torch==2.13.0 transformers==5.23.0 onnx
    ~/.cache/export-venv/bin/python benchmarks/export_transformers.py

The three differ in opset on purpose: at 14 the exporter spells out layer normalisation, from 17 on
it is one node.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

FOLDER = Path(__file__).parent / "models"
# Initialisers up to this many bytes are shapes and scalars that the exporter wrote, not weights.
LARGEST_CONSTANT_NBYTES = 256


class NamedOutputs(torch.nn.Module):
    """A model of which only the named outputs remain, in order."""

    def __init__(
        self, model: torch.nn.Module, arguments: tuple[str, ...], results: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        self.results = results

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = self.model(**dict(zip(self.arguments, arrays, strict=True)))
        return tuple(answer[name] for name in self.results)


@dataclass(frozen=True, slots=True)
class Export:
    """What to export: a model, example inputs by name, its outputs and its symbolic axes."""

    make: Callable[[], torch.nn.Module]
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]
    opset: int


def token_inputs() -> dict[str, torch.Tensor]:
    """Two rows of 128 tokens, so that neither size is mistaken for a constant 1."""
    tokens = torch.arange(256).reshape(2, 128)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def configuration(kind: str, **values: Any) -> Any:
    """A configuration of transformers with plain attention and its published sizes."""
    return getattr(transformers, kind)(attn_implementation="eager", **values)


TEXT_AXES = {0: "batch", 1: "sequence"}
EXPORTS = {
    "bert_base": Export(
        make=lambda: transformers.BertModel(configuration("BertConfig")),
        inputs=token_inputs() | {"token_type_ids": torch.zeros(2, 128, dtype=torch.int64)},
        outputs=("last_hidden_state", "pooler_output"),
        axes={
            "input_ids": TEXT_AXES,
            "attention_mask": TEXT_AXES,
            "token_type_ids": TEXT_AXES,
            "last_hidden_state": TEXT_AXES,
            "pooler_output": {0: "batch"},
        },
        opset=17,
    ),
    "gpt2": Export(
        make=lambda: transformers.GPT2LMHeadModel(configuration("GPT2Config", use_cache=False)),
        inputs=token_inputs(),
        outputs=("logits",),
        axes={"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES, "logits": TEXT_AXES},
        opset=14,
    ),
    "vit_b16": Export(
        make=lambda: transformers.ViTForImageClassification(
            configuration("ViTConfig", num_labels=1000)
        ),
        inputs={"pixel_values": torch.zeros(2, 3, 224, 224)},
        outputs=("logits",),
        axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        opset=18,
    ),
}


def make_distinct(model: torch.nn.Module) -> None:
    """Give every parameter its own values, as training does: the exporter merges equal ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)


def traced(export: Export) -> onnx.ModelProto:
    """The model as the TorchScript exporter writes it with its defaults."""
    model = NamedOutputs(export.make().eval(), tuple(export.inputs), export.outputs).eval()
    make_distinct(model)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            tuple(export.inputs.values()),
            str(path),
            input_names=list(export.inputs),
            output_names=list(export.outputs),
            dynamic_axes=export.axes,
            opset_version=export.opset,
            dynamo=False,
        )
        return onnx.load(path)


def strip(model: onnx.ModelProto) -> None:
    """Drop the values of every weight and keep its name, dtype and shape."""
    for tensor in model.graph.initializer:
        floating = tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        if floating and len(tensor.raw_data) > LARGEST_CONSTANT_NBYTES:
            tensor.ClearField("raw_data")
    for node in model.graph.node:
        node.ClearField("doc_string")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*EXPORTS, []], help="default: all")
    names = parser.parse_args().names or list(EXPORTS)
    for name in names:
        torch.manual_seed(0)
        model = traced(EXPORTS[name])
        strip(model)
        path = FOLDER / f"{name}.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        print(f"{path.name}: {len(model.graph.node)} nodes, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
