"""One token of GPT-2 small after a context of 512, beside PyTorch: caches updated where they are.

    python -m benchmarks.gpu_decode --batches 1,8,32 --out DIR --commit HASH

The network takes a token per sample, its position, and a cache of keys and of values per layer
([batch, 12, 512, 64], float16), writes the new rows there and gives the next token's logits. Ours
updates the caches in place (declared by ``updates``); PyTorch writes them in place by index_copy_,
eager in a CUDA graph, and compiled with CUDA graphs. Rows go to ``DIR/gpu_decode.jsonl`` and are
like those of `benchmarks.gpu`. Weights are random from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import LARGEST_ERROR_RATIO, _brief, _environment, _timed
from benchmarks.gpu_build import built, lines
from benchmarks.gpu_models import CONTEXT, SEED
from benchmarks.gpu_peers import Runner

__all__ = ["HEADS", "LAYERS", "Decoder", "example", "export", "make", "updates"]

LAYERS, HEADS, WIDTH, VOCABULARY, LONGEST = 12, 12, 768, 50257, 1024
HEAD = WIDTH // HEADS
CHECKED_STEPS = 8


class Attention(torch.nn.Module):
    """One new row of keys and values, and the new query over all rows up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        position: torch.Tensor,
        seen: torch.Tensor,
        in_place: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = x.shape[0]
        split = (batch, 1, HEADS, HEAD)
        query, key, value = (
            part.reshape(split).transpose(1, 2) for part in self.qkv(x).split(WIDTH, dim=-1)
        )
        if in_place:
            keys.index_copy_(2, position, key)
            values.index_copy_(2, position, value)
        else:
            keys = keys.index_copy(2, position, key)
            values = values.index_copy(2, position, value)
        y = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
        return self.out(y.transpose(1, 2).reshape(batch, 1, WIDTH)), keys, values


class Block(torch.nn.Module):
    """Normalisation before attention and before two layers of four times the width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.wide = torch.nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(
        self, x: torch.Tensor, *others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, keys, values = self.attention(self.first(x), *others)
        x = x + y
        hidden = torch.nn.functional.gelu(self.wide(self.second(x)), approximate="tanh")
        return x + self.narrow(hidden), keys, values


class Decoder(torch.nn.Module):
    """GPT-2 small, one step: token [B, 1], position [1], then keys and values of each layer.

    Gives logits [B, 1, vocabulary], then the caches; ``in_place`` writes into those it was given
    and gives logits alone.
    """

    def __init__(self, *, in_place: bool = False, layers: int = LAYERS) -> None:
        super().__init__()
        self.in_place = in_place
        self.tokens = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.places = torch.nn.Embedding(LONGEST, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(layers))
        self.last = torch.nn.LayerNorm(WIDTH)
        for name, item in self.named_parameters():
            if name.endswith("weight") and item.dim() == 2:
                torch.nn.init.normal_(item, std=0.05 if "places" in name else 0.04)

    def forward(
        self, token: torch.Tensor, position: torch.Tensor, *caches: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        x = self.tokens(token) + self.places(position)
        rows = torch.arange(caches[0].shape[2], device=token.device).view(1, 1, 1, -1)
        seen = rows <= position
        updated: list[torch.Tensor] = []
        for block, keys, values in zip(self.blocks, caches[::2], caches[1::2]):
            x, *both = block(x, keys, values, position, seen, self.in_place)
            updated += both
        logits = torch.nn.functional.linear(self.last(x), self.tokens.weight)
        return (logits,) if self.in_place else (logits, *updated)


def make(*, half: bool = True, in_place: bool = False, layers: int = LAYERS) -> Decoder:
    """The network with its fixed weights, on the CPU, in evaluation mode."""
    torch.manual_seed(SEED)
    module = Decoder(in_place=in_place, layers=layers).eval().requires_grad_(False)
    return module.half() if half else module


def names(layers: int = LAYERS) -> tuple[list[str], list[str]]:
    """Names of the inputs and of the outputs."""
    caches = [f"{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]
    inputs = ["token", "position", *(f"past_{name}" for name in caches)]
    return inputs, ["logits", *(f"present_{name}" for name in caches)]


def updates(layers: int = LAYERS) -> dict[str, str]:
    """Which output updates which input."""
    inputs, outputs = names(layers)
    return dict(zip(outputs[1:], inputs[2:], strict=True))


def example(
    batch: int, *, layers: int = LAYERS, half: bool = True, seed: int = SEED
) -> list[torch.Tensor]:
    """Inputs of the last step of the context: random tokens and a full cache of random rows."""
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(0, VOCABULARY, (batch, 1), generator=generator)
    shape = (batch, HEADS, CONTEXT, HEAD)
    caches = [torch.randn(shape, generator=generator).half() for _ in range(2 * layers)]
    found = [token, torch.tensor([CONTEXT - 1]), *caches]
    return found if half else [item.float() if item.is_floating_point() else item for item in found]


def export(folder: Path, batch: int, *, layers: int = LAYERS) -> Path:
    """Write ``folder/gpt2_decode.onnx`` for one batch size; returns the file."""
    path = folder / "gpt2_decode.onnx"
    inputs, outputs = names(layers)
    torch.onnx.export(
        make(layers=layers),
        tuple(example(batch, layers=layers)),
        str(path),
        input_names=inputs,
        output_names=outputs,
        dynamo=True,
        external_data=False,
        verbose=False,
        opset_version=20,
    )
    return path


class Session:
    """Our engine on buffers of PyTorch's: token, position, caches and logits."""

    def __init__(self, net: Any, batch: int, setup_s: float) -> None:
        self.stream = torch.cuda.Stream()
        self.context = net.create_context(stream=self.stream.cuda_stream)
        self.buffers = [item.cuda() for item in example(batch)]
        self.logits = torch.empty(batch, 1, VOCABULARY, dtype=torch.float16, device="cuda")
        for name, buffer in zip(names()[0], self.buffers, strict=True):
            self.context.bind(name, buffer)
        self.context.bind("logits", self.logits)
        torch.cuda.synchronize()
        for _ in range(3):
            self.context.run({})
        self.stream.synchronize()
        self.runner = Runner(
            "ours", lambda: self.context.run({}), self.stream, lambda: self.logits, setup_s
        )

    def step(self) -> torch.Tensor:
        """One run on what the buffers hold."""
        torch.cuda.synchronize()
        self.context.run({})
        self.stream.synchronize()
        return self.logits


class Eager:
    """PyTorch on buffers of its own, written in place."""

    def __init__(self, batch: int, *, half: bool = True) -> None:
        self.module = make(half=half, in_place=True).cuda()
        self.buffers = [item.cuda() for item in example(batch, half=half)]

    def step(self) -> torch.Tensor:
        """One run on what the buffers hold."""
        with torch.inference_mode():
            return self.module(*self.buffers)[0]


def eager_graph(batch: int) -> Runner:
    """PyTorch as it is, captured into one CUDA graph."""
    start = time.perf_counter()
    eager, stream = Eager(batch), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            eager.step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = eager.step()

    def launch() -> None:
        with torch.cuda.stream(stream):
            graph.replay()

    return Runner("torch graph", launch, stream, lambda: result, time.perf_counter() - start)


def compiled(batch: int) -> Runner:
    """torch.compile with CUDA graphs over caches at addresses that stay."""
    start = time.perf_counter()
    torch._dynamo.reset()
    eager, stream = Eager(batch), torch.cuda.Stream()
    for buffer in eager.buffers:
        torch._dynamo.mark_static_address(buffer)
    function = torch.compile(eager.module, dynamic=False, options={"triton.cudagraphs": True})
    latest: list[torch.Tensor] = []
    torch.cuda.synchronize()

    def launch() -> None:
        with torch.no_grad(), torch.cuda.stream(stream):
            latest[:] = function(*eager.buffers)

    for _ in range(4):
        launch()
    stream.synchronize()
    return Runner("torch.compile", launch, stream, lambda: latest[0], time.perf_counter() - start)


PEERS = {"torch-graph": eager_graph, "torch-compile": compiled}


def _errors(session: Session, batch: int) -> dict[str, Any]:
    """Errors over some steps in a row, ours and PyTorch's, over the spread of the logits.

    The caches are those that the steps before have left behind.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    runs = {"ours": session, "eager": Eager(batch), "exact": Eager(batch, half=False)}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in runs}
    fresh = example(batch, seed=SEED + 1)
    generator = torch.Generator().manual_seed(SEED + 2)
    tokens = torch.randint(0, VOCABULARY, (CHECKED_STEPS, batch, 1), generator=generator)
    for run in runs.values():
        for buffer, item in zip(run.buffers, fresh, strict=True):
            buffer.copy_(item)
    for step in range(CHECKED_STEPS):
        for name, run in runs.items():
            run.buffers[0].copy_(tokens[step])
            run.buffers[1].fill_(CONTEXT - CHECKED_STEPS + step)
            logits[name].append(run.step().float().reshape(batch, VOCABULARY).clone())
    found = {name: torch.cat(items) for name, items in logits.items()}
    truth = found["exact"]
    spread = (truth - truth.mean(0, keepdim=True)).norm().item()
    errors = {name: (item - truth).norm().item() / spread for name, item in found.items()}
    finite = bool(found["ours"].isfinite().all())
    ratio = errors["ours"] / errors["eager"]
    return {
        "error": errors["ours"],
        "eager_error": errors["eager"],
        "finite": finite,
        "norm": truth.norm().item(),
        "spread_over_norm": spread / truth.norm().item(),
        "right": finite and spread > 0 and ratio <= LARGEST_ERROR_RATIO,
    }


def _ours(batch: int, path: Path, options: argparse.Namespace, out: Path) -> tuple[Session, Any]:
    import engine
    from engine.building import BuildOptions

    sources = tuple(filter(None, options.tactics.split(",")))
    build = BuildOptions(target="cuda", level=options.level, tactics=sources, updates=updates())
    plan, facts = built(path, build, f"gpt2_decode_{batch}", options, out)
    return Session(engine.load(plan), batch, facts["build_s"]), facts


def _point(batch: int, options: argparse.Namespace, folder: Path, out: Path) -> dict[str, Any]:
    session, facts = _ours(batch, export(folder, batch), options, out)
    row: dict[str, Any] = {**facts, **_errors(session, batch)}
    runners = [session.runner]
    for peer in filter(None, options.peers.split(",")):
        try:
            runners.append(PEERS[peer](batch))
        except Exception as error:
            row[f"{peer} failed"] = f"{type(error).__name__}: {str(error)[:200]}"
    row |= _timed(runners)
    session.context.close()
    return row


def main() -> None:
    """Measure each batch and append its row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--peers", default=",".join(PEERS), help="of: " + ", ".join(PEERS))
    parser.add_argument("--out", default="benchmarks/results/gpu")
    parser.add_argument("--records", action="append", default=[], help="More timing records.")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--tactics", default="", help="Tactic sources; all by default.")
    parser.add_argument("--commit", required=True, help="What the rows say they were made from.")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seconds", type=float, default=math.inf, help="Start no point after.")
    parser.add_argument("--plans", help="A folder in which to keep the plans.")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = out / "gpu_decode.jsonl"
    done = {row["batch"] for row in lines(rows) if row["commit"] == options.commit}
    deadline = time.monotonic() + options.seconds
    for batch in map(int, options.batches.split(",")):
        if (options.resume and batch in done) or time.monotonic() > deadline:
            continue
        row = {"model": "gpt2_decode", "batch": batch, "commit": options.commit, **_environment()}
        try:
            with tempfile.TemporaryDirectory() as folder:
                row |= _point(batch, options, Path(folder), out)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error)[:600]}"
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        print(_brief(row), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
