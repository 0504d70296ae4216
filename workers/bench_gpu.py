"""What `enginefarm bench` measures of an engine on a GPU, and how it shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from storage.records import Json
from workers.output import duration_text, print_fields, print_table, size_text

if TYPE_CHECKING:
    from engine.runtime.cuda_engine import CudaEngine
    from workers.bench_timing import Length

__all__ = ["LAYER_RUNS", "Way", "measured", "show"]

LAYER_RUNS = 11


@dataclass(frozen=True, slots=True)
class Way:
    """How to run: contexts at once, as CUDA graphs, with copies to and from the host, by layer."""

    streams: int
    graph: bool
    transfers: bool
    layers: bool


def measured(engine: CudaEngine, feeds: Mapping[str, Any], length: Length, way: Way) -> Json:
    """Times in seconds, rates in runs, bytes and operations a second."""
    from workers.gpu_timing import time_streams

    times = time_streams(
        engine, feeds, length, way.streams, graph=way.graph, transfers=way.transfers
    )
    fields: Json = {
        "mode": "gpu",
        "gpu": {"index": engine.device.index, **engine.device.target.to_json()},
        "graph": way.graph,
        "transfers": way.transfers,
        "weights_nbytes": engine.weights_nbytes,
        "latency": asdict(times.latency),
        "back_to_back": times.back_to_back,
        "per_second": times.per_second,
        "batch": _batch(feeds),
    }
    if way.layers:
        fields |= _layers(engine, feeds)
    return fields


def _batch(feeds: Mapping[str, Any]) -> int | None:
    """The size of the first axis, when all inputs have the same."""
    sizes = {value.shape[0] if getattr(value, "shape", ()) else None for value in feeds.values()}
    found = sizes.pop() if len(sizes) == 1 else None
    return None if found is None else int(found)


def _layers(engine: CudaEngine, feeds: Mapping[str, Any]) -> Json:
    from workers.gpu_layers import copy_bandwidth, gpu_layers, peak_rate

    bandwidth = copy_bandwidth(engine.device)
    layers = gpu_layers(engine, feeds, LAYER_RUNS, bandwidth)
    return {
        "bandwidth": bandwidth,
        "peak_rate": peak_rate(engine.device.target),
        "layers": [layer.to_json() for layer in layers],
    }


def show(fields: Json) -> None:
    """Print what was measured for people."""
    latency, gpu = fields["latency"], fields["gpu"]
    shapes = ", ".join(f"{name}{shape}" for name, shape in fields["inputs"].items())
    how = [
        f"GPU {gpu['index']} ({gpu['name']})",
        f"{fields['contexts']} streams",
        "CUDA graphs" if fields["graph"] else "no CUDA graphs",
        "inputs and outputs on the " + ("host" if fields["transfers"] else "device"),
    ]
    rate = f"{fields['per_second']:.2f} runs/s"
    if fields["batch"] is not None:
        rate += f", {fields['per_second'] * fields['batch']:.2f} items/s"
    print_fields(
        f"{latency['runs']} runs, {', '.join(how)}, {shapes}",
        {
            "least": duration_text(latency["least"]),
            "median": duration_text(latency["median"]),
            "p90": duration_text(latency["p90"]),
            "p99": duration_text(latency["p99"]),
            "back to back": duration_text(fields["back_to_back"]),
            "throughput": rate,
            "weights": size_text(fields["weights_nbytes"]),
        },
    )
    if fields["host_steps"]:
        print(f"{len(fields['host_steps'])} steps on the host, each of which ends a CUDA graph")
        rows = [tuple(step.values()) for step in fields["host_steps"]]
        print_table(("layer", "operator", "cause"), rows)
    if "layers" in fields:
        _show_layers(fields)


def _show_layers(fields: Json) -> None:
    peak = fields["peak_rate"]
    rate = "no rate of products is known for it" if peak is None else f"{peak / 1e12:.0f} TFLOP/s"
    print(
        f"floors: {fields['bandwidth'] / 1e12:.2f} TB/s as measured by copying, {rate}"
        + (" by the data sheet" if peak is not None else "")
    )
    header = ("layer", "kind", "tactic", "launches", "time", "share", "bytes", "floor", "of it")
    print_table(header, [_row(layer) for layer in fields["layers"]])


def _row(layer: Json) -> tuple[object, ...]:
    floor, nbytes = layer["floor"], layer["nbytes"]
    return (
        layer["layer"],
        layer["kind"],
        layer["tactic"],
        layer["launches"],
        duration_text(layer["seconds"]),
        f"{100 * layer['share']:.1f} %",
        "" if nbytes is None else size_text(nbytes),
        "" if floor is None else duration_text(floor),
        f"{100 * floor / layer['seconds']:.0f} %" if floor and layer["seconds"] else "",
    )
