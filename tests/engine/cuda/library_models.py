"""NumPy models of vendors' libraries: what their manuals say a call computes, over host arrays."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine.cuda import cublaslt_functions as lt
from engine.ir.types import Array, DType
from engine.ops.special import erf


class ColumnMajorModel:
    """The library's definition of a product over host arrays; stands in for its functions.

    Addresses are keys of ``memory``; a layout holds what it was created with and its attributes.
    """

    version = 130002

    def __init__(self, memory: dict[int, Array], need: int = 0, refuses: int = 0) -> None:
        self.memory, self.need, self.refuses = memory, need, refuses
        self.objects: dict[int, dict[Any, Any]] = {}
        self.ran = ""

    def create(self, name: str, *arguments: Any) -> int:
        made = 1000 + len(self.objects)
        self.objects[made] = {"created": arguments}
        return made

    def set(self, name: str, made: int, attribute: int, value: Any) -> None:
        self.objects[made][attribute] = value.value

    def describe(self, status: int) -> str:
        return f"status {status}"

    def status(self, name: str, *arguments: Any) -> int:
        assert name == "cublasLtMatmulAlgoCheck"
        arguments[-1]._obj.workspace_nbytes = self.need
        return self.refuses

    def call(self, name: str, *arguments: Any) -> None:
        if name.endswith("Destroy"):
            del self.objects[arguments[0]]
            return
        assert name == "cublasLtMatmul"
        self._matmul(*arguments)

    def _view(self, address: int, layout: int, batch: int) -> Array:
        _, rows, columns, leading = self.objects[layout]["created"]
        assert leading >= rows
        array = self.memory[address]
        offset = batch * self.objects[layout].get(lt.BATCH_OFFSET, 0)
        assert offset + (columns - 1) * leading + rows <= array.size
        step = array.itemsize
        return np.lib.stride_tricks.as_strided(
            array.reshape(-1)[offset:], (rows, columns), (step, leading * step)
        )

    def _matmul(self, *arguments: Any) -> None:
        (_, operation, alpha, a, a_layout, b, b_layout, beta) = arguments[:8]
        c, c_layout, d, d_layout, algorithm = arguments[8:13]
        self.ran = bytes(algorithm._obj).hex()
        scale = ctypes.cast(alpha, ctypes.POINTER(ctypes.c_float))[0]
        keep = ctypes.cast(beta, ctypes.POINTER(ctypes.c_float))[0]
        what = self.objects[operation]
        assert what["created"] == (68, 0)
        for batch in range(self.objects[d_layout].get(lt.BATCH_COUNT, 1)):
            left = self._view(a, a_layout, batch).astype(np.float32)
            right = self._view(b, b_layout, batch).astype(np.float32)
            sums = scale * ((left.T if what[lt.TRANSPOSE_A] else left) @ right)
            if keep:  # the library does not read C when beta is 0
                sums += keep * self._view(c, c_layout, batch)
            epilogue = what[lt.EPILOGUE]
            if epilogue & 4:
                sums += self.memory[what[lt.BIAS_POINTER]].astype(np.float32)[:, None]
            if epilogue & 2:
                sums = np.maximum(sums, 0)
            if epilogue & 32:
                inner = np.sqrt(2 / np.pi) * (sums + 0.044715 * sums**3)
                sums = 0.5 * sums * (1 + np.tanh(inner))
            assert epilogue in (1, 2, 4, 6, 32, 36)
            out = self._view(d, d_layout, batch)
            out[...] = sums.astype(out.dtype)


def at(address: int, dtype: Any, dim: Sequence[int], stride: Sequence[int]) -> Array:
    """A strided view of host memory; ``stride`` in elements."""
    size = np.dtype(dtype).itemsize
    reach = 1 + sum((n - 1) * s for n, s in zip(dim, stride))
    flat = np.frombuffer((ctypes.c_uint8 * (reach * size)).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(flat, dim, [s * size for s in stride])


class Tensor:
    """A tensor of a graph: where it lies, or how it is computed."""

    def __init__(self, compute: Callable[[Mapping[int, int]], Array] | None = None) -> None:
        self.compute = compute
        self.uid, self.output = 0, False
        self.dim: list[int] = []
        self.stride: list[int] = []
        self.dtype: Any = None

    def view(self, addresses: Mapping[int, int]) -> Array:
        return at(addresses[self.uid], self.dtype, self.dim, self.stride)

    def value(self, addresses: Mapping[int, int]) -> Array:
        if self.compute is not None:
            return self.compute(addresses)
        return self.view(addresses).astype(np.float32)

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_output(self, output: bool) -> Tensor:
        self.output = output
        return self

    def set_data_type(self, dtype: Any) -> Tensor:
        self.dtype = dtype
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self


class Graph:
    """The graph interface of cuDNN's frontend as far as it is used, in float32."""

    def __init__(self, **options: Any) -> None:
        self.tensors: list[Tensor] = []
        self.plan: tuple[int, dict[Any, int]] | None = None

    def _made(self, compute: Callable[[Mapping[int, int]], Array] | None) -> Tensor:
        self.tensors.append(Tensor(compute))
        return self.tensors[-1]

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: Any) -> Tensor:
        return self._made(None).set_dim(dim).set_stride(stride).set_data_type(data_type)

    def tensor_scalar(self, value: float, kind: Any) -> Tensor:
        return self._made(lambda _: np.float32(value))

    def conv_fprop(
        self,
        *,
        image: Tensor,
        weight: Tensor,
        pre_padding: list[int],
        post_padding: list[int],
        stride: list[int],
        dilation: list[int],
    ) -> Tensor:
        def compute(addresses: Mapping[int, int]) -> Array:
            x, w = image.value(addresses), weight.value(addresses)
            x = np.pad(x, ((0, 0), (0, 0), *zip(pre_padding, post_padding)))
            outputs, inputs, high, wide = w.shape
            groups = x.shape[1] // inputs
            p, q = (
                (x.shape[2 + i] - (w.shape[2 + i] - 1) * dilation[i] - 1) // stride[i] + 1
                for i in (0, 1)
            )
            y = np.zeros((x.shape[0], outputs, p, q), np.float32)
            per = outputs // groups
            for k in range(outputs):
                part = x[:, k // per * inputs : (k // per + 1) * inputs]
                for r in range(high):
                    for s in range(wide):
                        rows = r * dilation[0] + stride[0] * np.arange(p)
                        columns = s * dilation[1] + stride[1] * np.arange(q)
                        taps = part[:, :, rows][:, :, :, columns]
                        y[:, k] += np.einsum("nchw,c->nhw", taps, w[k, :, r, s])
            return y

        return self._made(compute)

    def sdpa(
        self,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_scale: float,
        generate_stats: bool,
        name: str,
        bias: Tensor | None = None,
        diagonal_alignment: Any = None,
        diagonal_band_right_bound: int | None = None,
    ) -> tuple[Tensor, None]:
        assert generate_stats is False

        def compute(addresses: Mapping[int, int]) -> Array:
            queries, keys, values = (t.value(addresses) for t in (q, k, v))
            times = queries.shape[1] // keys.shape[1]
            keys, values = (np.repeat(t, times, axis=1) for t in (keys, values))
            scores = attn_scale * (queries @ keys.swapaxes(-1, -2))
            if bias is not None:
                scores = scores + bias.value(addresses)
            if diagonal_band_right_bound is not None:
                assert (diagonal_alignment, diagonal_band_right_bound) == ("top left", 0)
                rows, columns = np.indices(scores.shape[-2:])
                scores = np.where(columns <= rows, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            return np.asarray(weights / weights.sum(-1, keepdims=True) @ values)

        return self._made(compute), None

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        functions: dict[str, Callable[..., Array]] = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "identity": np.asarray,
            "relu": lambda x: np.maximum(x, 0),
            "tanh": np.tanh,
            "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
            "swish": lambda x: x / (1 + np.exp(-x)),
            "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
            "gelu_approx_tanh": lambda x: (
                0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            ),
        }
        function = functions[name]
        return lambda *inputs: self._made(
            lambda addresses: np.asarray(function(*(item.value(addresses) for item in inputs)))
        )

    def validate(self) -> None:
        outputs = [tensor for tensor in self.tensors if tensor.output]
        assert len(outputs) == 1 and outputs[0].dtype is not None

    def build_operation_graph(self) -> None:
        pass

    def create_execution_plan(self, engine: int, knobs: dict[Any, int]) -> None:
        if engine == 13:
            raise RuntimeError("engine 13 is not supported\nlong explanation")
        self.plan = engine, knobs

    def build_plan_at_index(self, index: int) -> None:
        assert self.plan is not None and index == 0

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return 512

    def serialize(self) -> list[int]:
        raise RuntimeError("this graph cannot be written down")

    def execute_plan_at_index(
        self, addresses: Mapping[int, int], workspace: int, index: int, *, handle: Any
    ) -> None:
        (written,) = (tensor for tensor in self.tensors if tensor.output)
        assert set(addresses) == {t.uid for t in self.tensors if t.uid}
        written.view(addresses)[...] = written.value(addresses)


def frontend_model(streams: list[int]) -> Any:
    """The module ``cudnn``; streams that are set are added to a list."""
    return SimpleNamespace(
        pygraph=Graph,
        data_type=SimpleNamespace(HALF=np.float16, FLOAT=np.float32, BFLOAT16=DType.BFLOAT16.numpy),
        scalar_type=SimpleNamespace(RUNTIME_PARAM="runtime"),
        diagonal_alignment=SimpleNamespace(TOP_LEFT="top left"),
        knob_type=SimpleNamespace(__members__={"TILE_SIZE": "tile", "STAGES": "stages"}),
        cudnnGraphNotSupportedError=LookupError,
        backend_version=lambda: 91900,
        create_handle=lambda: "handle",
        destroy_handle=lambda handle: None,
        set_stream=lambda handle, stream: streams.append(stream),
    )
