"""Convolutions and attention by cuDNN, with an engine that was chosen when the plan was built.

A call is one cuDNN graph: the operation and everything elementwise around it. The plan stores the
engine's number and its knobs, never a serialised plan: that would be trusted blindly by the
library. Building a graph from them takes milliseconds for precompiled kernels, and a compilation
for those that the library generates: those are kept in a cache of the user's (`cudnn_cache`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from engine.cuda import cudnn_cache
from engine.cuda.cudnn_calls import AttentionCall, Call, ConvolutionCall, EngineChoice, read_call
from engine.cuda.libraries import load_shared
from engine.errors import KernelError, MissingExtraError
from engine.target import CudaTarget

__all__ = ["CudnnGraphs", "PreparedGraph", "build_graph", "frontend"]

_WHEELS = ("nvidia/cudnn/lib", "nvidia/cu13/lib", "nvidia/cublas/lib", "nvidia/cuda_nvrtc/lib")
_LIBRARIES = (
    ("libcublasLt.so.13", "nvidia-cublas"),
    ("libnvrtc.so.13", "nvidia-cuda-nvrtc"),
    ("libcudnn.so.9", "nvidia-cudnn-cu13"),
)
_PURPOSE = "a layer by cuDNN"
#: A graph that took longer to build, in seconds, is kept in the cache.
SLOW_BUILD_S = 0.05


@functools.cache
def frontend() -> Any:
    """The Python frontend with the backend loaded; MissingExtraError when either is missing."""
    # The backend opens the other two by name: it asks one, and compiles with the other.
    for soname, package in _LIBRARIES:
        load_shared(soname, _WHEELS, package=package, extra="cudnn", purpose=_PURPOSE)
    try:
        import cudnn
    except ImportError as error:
        raise MissingExtraError("nvidia-cudnn-frontend", "cudnn", _PURPOSE) from error
    # It warns of every graph that the backend declines; here that is an answer, not a mishap.
    logging.getLogger("cudnn").setLevel(logging.ERROR)
    return cudnn


def graph_errors() -> tuple[type[Exception], ...]:
    """What the frontend raises when a graph cannot be built or run."""
    return RuntimeError, ValueError, frontend().cudnnGraphNotSupportedError


def element_type(dtype: str) -> Any:
    """The library's word for an element type."""
    types = frontend().data_type
    known = {"float16": types.HALF, "bfloat16": types.BFLOAT16, "float32": types.FLOAT}
    return known[dtype]


def build_graph(
    call: Call, sizes: Mapping[str, int], handle: Any = None, **options: Any
) -> tuple[Any, list[int]]:
    """A graph with its operation, and the numbers of its operands in their order.

    ``options`` go to the graph as they are.
    """
    types = frontend().data_type
    graph = frontend().pygraph(
        io_data_type=element_type(call.dtype),
        intermediate_data_type=types.FLOAT,
        compute_data_type=types.FLOAT,
        handle=handle,
        **options,
    )
    if isinstance(call, ConvolutionCall):
        tensors = _convolution(graph, call, sizes)
    else:
        tensors = _attention(graph, call, sizes)
    numbers = []
    for number, tensor in enumerate(tensors, 1):
        tensor.set_uid(number)
        numbers.append(number)
    return graph, numbers


def _convolution(graph: Any, call: ConvolutionCall, z: Mapping[str, int]) -> list[Any]:
    """The library lists axes as N, C, H, W; strides say that channels are innermost."""

    def packed(name: str, n: int, c: int, h: int, w: int, dtype: str) -> Any:
        stride = [c * h * w, 1, c * w, c]
        return graph.tensor(
            name=name, dim=[n, c, h, w], stride=stride, data_type=element_type(dtype)
        )

    x = packed("x", z["n"], z["c"], z["h"], z["w"], call.dtype)
    w = packed("w", z["k"], z["filter_c"], z["r"], z["s"], call.dtype)
    top, left, bottom, right = call.pads
    y = graph.conv_fprop(
        image=x,
        weight=w,
        pre_padding=[top, left],
        post_padding=[bottom, right],
        stride=list(call.strides),
        dilation=list(call.dilations),
    )
    tensors = [x, w]
    for place, operands in (("before", call.before), ("after", call.after)):
        for index, (kind, dtype) in enumerate(operands):
            shape = (1, z["k"], 1, 1) if kind == "column" else (z["n"], z["k"], z["p"], z["q"])
            operand = packed(f"{place}{index}", *shape, dtype)
            tensors.append(operand)
            y = graph.add(y, operand)
        if place == "before":
            y = _activate(graph, call, y)
    n, k, p, q = z["n"], z["k"], z["p"], z["q"]
    y.set_output(True).set_data_type(element_type(call.result))
    y.set_dim([n, k, p, q]).set_stride([k * p * q, 1, k * q, k])
    return [*tensors, y]


def _activate(graph: Any, call: ConvolutionCall, y: Any) -> Any:
    """The activation, in the words for which the library can generate a fused kernel.

    Its clipped ReLU, sigmoid and tanh right behind a sum belong to older fixed patterns.
    """
    if call.activation == "none":
        return y
    if call.activation == "clip":
        y = graph.relu(y) if call.low == 0 else graph.max(y, _scalar(graph, call.low))
        return graph.min(y, _scalar(graph, call.high))
    if call.activation in ("sigmoid", "tanh"):
        y = graph.identity(y)
    name = {"silu": "swish", "gelu_tanh": "gelu_approx_tanh"}.get(call.activation, call.activation)
    return getattr(graph, name)(y)


def _scalar(graph: Any, value: float) -> Any:
    return graph.tensor_scalar(value, frontend().scalar_type.RUNTIME_PARAM)


def _attention(graph: Any, call: AttentionCall, z: Mapping[str, int]) -> list[Any]:
    def strided(name: str, heads: int, rows: int, columns: int, dtype: str) -> Any:
        batch, head, row = (z[f"{name}_{axis}"] for axis in ("batch", "head", "row"))
        dim = [z["batch"], heads, rows, columns]
        return graph.tensor(
            name=name, dim=dim, stride=[batch, head, row, 1], data_type=element_type(dtype)
        )

    q = strided("q", z["heads"], z["queries"], call.head_size, call.dtype)
    k = strided("k", z["shared"], z["keys"], call.head_size, call.dtype)
    v = strided("v", z["shared"], z["keys"], call.head_size, call.dtype)
    tensors = [q, k, v]
    options: dict[str, Any] = {}
    if call.mask:
        # An axis along which the mask is shared has one element.
        batch, heads = (z["batch"] if z["m_batch"] else 1), (z["heads"] if z["m_head"] else 1)
        rows, whole = z["m_row"], z["m_row"] * z["queries"]
        options["bias"] = graph.tensor(
            name="mask",
            dim=[batch, heads, z["queries"], z["keys"]],
            stride=[z["m_batch"] or whole * heads, z["m_head"] or whole, rows, 1],
            data_type=element_type(call.mask),
        )
        tensors.append(options["bias"])
    if call.causal:
        options["diagonal_alignment"] = frontend().diagonal_alignment.TOP_LEFT
        options["diagonal_band_right_bound"] = 0
    o, _ = graph.sdpa(
        q=q, k=k, v=v, attn_scale=call.scale, generate_stats=False, name="attention", **options
    )
    o.set_output(True).set_data_type(element_type(call.dtype))
    o.set_dim([z["batch"], z["heads"], z["queries"], call.head_size])
    o.set_stride([z["o_batch"], z["o_head"], z["o_row"], 1])
    return [*tensors, o]


class CudnnGraphs:
    """The library on the device whose primary context is current; implements `Library`.

    ``rest`` is a stream that lives as long as the library; the handle is left on it after every
    call, never on one of a context, which may be gone when the next call changes the stream.
    """

    def __init__(self, rest: int = 0) -> None:
        cudnn = frontend()
        self.rest = rest
        self._version = int(cudnn.backend_version())
        try:
            self.handle = cudnn.create_handle()
        except RuntimeError as error:
            raise KernelError(
                f"cuDNN {self._version} does not start ({brief_error(error)}); check the driver "
                "and that the device has free memory"
            ) from error
        #: One handle serves all contexts, and its stream belongs to it.
        self.lock = threading.Lock()
        self._built: dict[str, BuiltGraph] = {}

    @property
    def version(self) -> int:
        """The backend's number, as 91900."""
        return self._version

    def prepare(
        self, call: Mapping[str, Any], sizes: Sequence[int], target: CudaTarget
    ) -> PreparedGraph:
        """Build a graph with its engine; errors as `Library.prepare` says."""
        wanted, chosen, named = read_call(call, sizes)
        if chosen.version != self._version:
            raise KernelError(
                f"the plan's layers were tuned with cuDNN {chosen.version} and this process loads "
                f"{self._version}; install that version of nvidia-cudnn-cu13 or build the plan "
                "again"
            )
        key = json.dumps([dict(call), list(sizes)], sort_keys=True)
        with self.lock:
            built = self._built.get(key)
            if built is None:
                versions = (self._version, getattr(frontend(), "__version__", ""))
                kept = cudnn_cache.entry_key(call, sizes, versions, target)
                built = self._built[key] = BuiltGraph(self, wanted, chosen, named, kept)
        return PreparedGraph(self, built)

    def close(self) -> None:
        """Release the handle and all graphs."""
        self._built.clear()
        if self.handle is not None:
            handle, self.handle = self.handle, None
            frontend().destroy_handle(handle)


class BuiltGraph:
    """A graph with one engine; all layers and contexts that hold the same call share it.

    ``kept`` is its name in the cache.
    """

    def __init__(
        self,
        library: CudnnGraphs,
        call: Call,
        chosen: EngineChoice,
        sizes: Mapping[str, int],
        kept: str,
    ) -> None:
        self.operand_nbytes = call.operand_nbytes(sizes)
        self.numbers = list(range(1, len(self.operand_nbytes) + 1))
        self.graph: Any
        if self._restored(library, kept):
            return
        began = time.perf_counter()
        try:
            self.graph, _ = build_graph(call, sizes, library.handle)
            self.graph.validate()
            self.graph.build_operation_graph()
            self.graph.create_execution_plan(chosen.engine, knobs_of(chosen))
            self.graph.build_plan_at_index(0)
            self.workspace_nbytes = int(self.graph.get_workspace_size_plan_at_index(0))
        except graph_errors() as error:
            raise KernelError(
                f"cuDNN {library.version} does not run engine {chosen.engine} with "
                f"{dict(chosen.knobs)} for {dict(sizes)} on this device ({brief_error(error)}); "
                "build the plan again"
            ) from error
        if self.workspace_nbytes > chosen.workspace_nbytes:
            raise KernelError(
                f"cuDNN needs {self.workspace_nbytes} bytes of workspace for {dict(sizes)}, the "
                f"plan holds {chosen.workspace_nbytes}; build the plan again"
            )
        if time.perf_counter() - began > SLOW_BUILD_S:
            with contextlib.suppress(*graph_errors()):  # a graph that cannot be written down
                data = bytes(self.graph.serialize())
                cudnn_cache.write(kept, cudnn_cache.Entry(data, self.workspace_nbytes))

    def _restored(self, library: CudnnGraphs, kept: str) -> bool:
        """Whether the graph was in the cache and the library takes it; else it is built anew."""
        entry = cudnn_cache.read(kept)
        if entry is None:
            return False
        try:
            self.graph = frontend().pygraph(handle=library.handle)
            self.graph.deserialize(list(entry.data))
        except graph_errors():
            return False
        self.workspace_nbytes = entry.workspace_nbytes
        return True


class PreparedGraph:
    """A call ready to run; implements `PreparedCall`."""

    def __init__(self, library: CudnnGraphs, built: BuiltGraph) -> None:
        self._library = library
        self._built: BuiltGraph | None = built
        self.workspace_nbytes = built.workspace_nbytes
        self.operand_nbytes = built.operand_nbytes

    def run(
        self, operands: Sequence[int], workspace: int, workspace_nbytes: int, stream: int
    ) -> None:
        """Enqueue the graph; as `PreparedCall.run` says."""
        built = self._built
        if built is None:
            raise KernelError("a layer by cuDNN was run after it was closed")
        count = len(self.operand_nbytes)
        if len(operands) != count or workspace_nbytes < self.workspace_nbytes:
            raise KernelError(
                f"a layer by cuDNN takes {count} operands and {self.workspace_nbytes} bytes of "
                f"workspace, found {len(operands)} and {workspace_nbytes}"
            )
        library = self._library
        try:
            with library.lock:
                frontend().set_stream(library.handle, stream)
                try:
                    built.graph.execute_plan_at_index(
                        dict(zip(built.numbers, operands)), workspace, 0, handle=library.handle
                    )
                finally:
                    frontend().set_stream(library.handle, library.rest)
        except graph_errors() as error:
            raise KernelError(f"cuDNN failed while it ran ({brief_error(error)})") from error

    def close(self) -> None:
        """Let go of the graph, which the library keeps for others."""
        self._built = None


def knobs_of(chosen: EngineChoice) -> dict[Any, int]:
    """A choice's knobs with cuDNN's own names; KernelError for a name that this version lacks."""
    known = frontend().knob_type.__members__
    unknown = sorted(set(chosen.knobs) - set(known))
    if unknown:
        raise KernelError(f"this version of cuDNN has no knob {unknown[0]!r}; build the plan again")
    return {known[name]: value for name, value in chosen.knobs.items()}


def brief_error(error: BaseException) -> str:
    """The first line of the library's often long words."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
