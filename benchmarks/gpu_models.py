"""The models of the GPU benchmark: made by PyTorch from fixed seeds, exported as float16 ONNX.

Weights are random, but such that outputs differ by input: batch normalisation has statistics of
real activations, and ViT's head, which torchvision leaves at zero, is drawn anew. Needs torch,
torchvision, transformers, onnx and onnxscript; runs where the peers run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["MODELS", "Model", "export", "make"]

SEED = 20_261_122
TOKENS = 128
CONTEXT = 512


@dataclass(frozen=True, slots=True)
class Model:
    """How a model is made, what it takes, and the name of its batch axis's inputs."""

    name: str
    make: Callable[[], torch.nn.Module]
    inputs: Callable[[int, torch.Generator], dict[str, torch.Tensor]]
    outputs: tuple[str, ...]


class FirstOutput(torch.nn.Module):
    """A model of transformers reduced to tensors in, one tensor out."""

    def __init__(self, model: torch.nn.Module, result: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.result, self.fixed = model, result, fixed

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.fixed)
        return answer[self.result]


class UNet(torch.nn.Module):
    """U-Net with two 3x3 convolutions a level, batch normalisation, and transposed convolutions."""

    def __init__(
        self, base: int = 64, levels: int = 4, channels: int = 3, classes: int = 2
    ) -> None:
        super().__init__()

        def block(before: int, after: int) -> torch.nn.Sequential:
            layers: list[torch.nn.Module] = []
            for width in (before, after):
                layers += [
                    torch.nn.Conv2d(width, after, 3, padding=1),
                    torch.nn.BatchNorm2d(after),
                    torch.nn.ReLU(inplace=True),
                ]
            return torch.nn.Sequential(*layers)

        widths = [base << level for level in range(levels + 1)]
        self.first = block(channels, base)
        self.down = torch.nn.ModuleList(block(a, b) for a, b in itertools.pairwise(widths))
        self.up = torch.nn.ModuleList(
            torch.nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.merge = torch.nn.ModuleList(block(b, a) for a, b in itertools.pairwise(widths))
        self.last = torch.nn.Conv2d(base, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [self.first(x)]
        for level in self.down:
            kept.append(level(torch.nn.functional.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge)):
            x = merge(torch.cat([kept.pop(), up(x)], dim=1))
        return self.last(x)


def _image(size: int) -> Callable[[int, torch.Generator], dict[str, torch.Tensor]]:
    def inputs(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(batch, 3, size, size, generator=generator).half()}

    return inputs


def _tokens(vocabulary: int, *, mask: bool) -> Callable[[int, torch.Generator], dict[str, Any]]:
    def inputs(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, vocabulary, (batch, TOKENS), generator=generator)
        found = {"input_ids": ids}
        if mask:
            lengths = torch.randint(TOKENS // 2, TOKENS + 1, (batch, 1), generator=generator)
            found["attention_mask"] = (torch.arange(TOKENS)[None] < lengths).long()
        return found

    return inputs


def _drawn(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose constant parameters (biases of 0, scales of 1) are drawn as trained ones are.

    Else a compiler could leave additions out that a trained network needs.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.02)
    return model


def _settled(model: torch.nn.Module, image: torch.Tensor) -> torch.nn.Module:
    """Batch normalisation with the statistics of a few random images, cumulative averages."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    dropouts = [m for m in model.modules() if type(m).__name__ in ("Dropout", "StochasticDepth")]
    model.train()
    for dropout in dropouts:
        dropout.eval()
    with torch.no_grad():
        model(image)
    return model.eval()


def _vision(kind: str) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import torchvision

        model = getattr(torchvision.models, kind)(weights=None)
        generator = torch.Generator().manual_seed(SEED)
        if kind == "vit_b_16":
            torch.nn.init.normal_(model.heads.head.weight, std=0.02, generator=generator)
            return _drawn(model).eval()
        return _settled(_drawn(model), torch.randn(4, 3, 224, 224, generator=generator))

    return build


def _unet() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(SEED)
    return _settled(_drawn(UNet()), torch.randn(2, 3, 256, 256, generator=generator))


def _bert() -> torch.nn.Module:
    import transformers

    model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    return FirstOutput(_drawn(model).eval(), "last_hidden_state")


def _gpt2() -> torch.nn.Module:
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    return FirstOutput(_drawn(model).eval(), "logits", use_cache=False)


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("resnet50", _vision("resnet50"), _image(224), ("y",)),
        Model("bert_base", _bert, _tokens(30522, mask=True), ("y",)),
        Model("vit_b_16", _vision("vit_b_16"), _image(224), ("y",)),
        Model("gpt2", _gpt2, _tokens(50257, mask=False), ("y",)),
        Model("mobilenet_v2", _vision("mobilenet_v2"), _image(224), ("y",)),
        Model("efficientnet_b0", _vision("efficientnet_b0"), _image(224), ("y",)),
        Model("unet", _unet, _image(256), ("y",)),
    )
}


def make(name: str, *, half: bool = True) -> torch.nn.Module:
    """The module with its fixed weights, on the CPU, in evaluation mode."""
    torch.manual_seed(SEED)
    module = MODELS[name].make().eval()
    return module.half() if half else module


def export(name: str, folder: Path, *, module: torch.nn.Module | None = None) -> Path:
    """Write ``folder/name.onnx`` with an open batch axis; returns the file."""
    model = MODELS[name]
    path = folder / f"{name}.onnx"
    module = make(name) if module is None else module
    inputs = model.inputs(2, torch.Generator().manual_seed(SEED))
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=list(model.outputs),
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
        opset_version=20,
    )
    return path
