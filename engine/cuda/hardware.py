"""A real GPU behind `engine.cuda.device.Device`: its primary context, through the CUDA driver."""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Sequence
from typing import Any

from engine.cuda.device import Argument, Enqueue, Launch
from engine.cuda.driver import bindings, call, check
from engine.cuda.libraries import Library, LibraryName, open_library
from engine.cuda.tensor_map import EncodedBox
from engine.errors import DeviceError
from engine.ir.types import DType
from engine.target import CudaTarget

__all__ = ["CudaDevice", "describe_device", "short_name"]

LEAST_CAPABILITY = (8, 0)
#: Dynamic shared memory that needs no permission.
_FREE_SHARED = 48 << 10
#: Clusters up to this size run on every device that has clusters.
_PORTABLE_CLUSTER = 8
_TENSOR_MAP_NBYTES = 128

_MAP_DTYPES = {
    DType.FLOAT16: "FLOAT16",
    DType.BFLOAT16: "BFLOAT16",
    DType.FLOAT32: "FLOAT32",
    DType.INT32: "INT32",
    DType.INT8: "UINT8",
    DType.UINT8: "UINT8",
    DType.FLOAT8E4M3FN: "UINT8",
    DType.FLOAT8E5M2: "UINT8",
}
_SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}
_SCALARS: dict[str, Any] = {
    "pointer": ctypes.c_uint64,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "f32": ctypes.c_float,
}


def short_name(name: str) -> str:
    """The name of a GPU's class, as "h200" for "NVIDIA H200" and "h100-1g.10gb" for a MIG slice."""
    text, _, slice_name = name.lower().partition(" mig ")
    words = [word for word in re.split(r"[^a-z0-9.]+", text) if word]
    noise = {"nvidia", "tesla", "geforce", "quadro", "graphics", "device", "gpu", "generation"}
    kept = [word for word in words if word not in noise]
    # What follows the model's number is a form factor: sxm4, pcie, 80gb, hbm3.
    end = next((i for i, word in enumerate(kept) if re.search(r"\d", word)), len(kept) - 1)
    model = "".join(kept[: end + 1]) or "gpu"
    if end + 1 < len(kept) and kept[end + 1] in ("ti", "super", "ada"):
        model += kept[end + 1]
    return f"{model}-{slice_name.strip()}" if slice_name else model


def _attribute(name: str, handle: Any) -> int:
    which = getattr(bindings().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", which, handle, doing="ask the GPU what it is"))


@functools.cache
def describe_device(index: int) -> CudaTarget:
    """What the GPU with that number is; DeviceError when there is none or it is too old."""
    count = int(call("cuDeviceGetCount", doing="count the GPUs"))
    if not 0 <= index < count:
        found = f"{count} were found" if count else "none was found"
        raise DeviceError(f"there is no GPU with the number {index}: {found} on this machine")
    handle = call("cuDeviceGet", index, doing="find the GPU")
    name = call("cuDeviceGetName", 128, handle, doing="ask the GPU for its name")
    text = name.split(b"\0")[0].decode(errors="replace").strip()
    capability = (
        _attribute("COMPUTE_CAPABILITY_MAJOR", handle),
        _attribute("COMPUTE_CAPABILITY_MINOR", handle),
    )
    if capability < LEAST_CAPABILITY:
        raise DeviceError(
            f"the GPU {text} has compute capability {capability[0]}.{capability[1]}; needed is "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or later"
        )
    memory = int(call("cuDeviceTotalMem", handle, doing="ask the GPU for its memory"))
    return CudaTarget(
        vendor="cuda",
        name=short_name(text),
        capability=capability,
        multiprocessors=_attribute("MULTIPROCESSOR_COUNT", handle),
        shared_nbytes=_attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", handle),
        l2_nbytes=_attribute("L2_CACHE_SIZE", handle),
        memory_gib=round(memory / (1 << 30)),
    )


class CudaDevice:
    """One GPU of this machine; safe to use from several threads, each of which calls `use`."""

    def __init__(self, index: int) -> None:
        self.target = describe_device(index)
        self.index = index
        self._driver = bindings()
        handle = call("cuDeviceGet", index, doing="find the GPU")
        self._context = call("cuDevicePrimaryCtxRetain", handle, doing="start the GPU's context")
        self._libraries: dict[LibraryName, Library] = {}
        self._lock = threading.Lock()
        #: Held while a thread captures on the streams listed, and by whoever waits for everything.
        self._capturing = threading.RLock()
        self._captured: set[int] = set()
        self.use()

    def use(self) -> None:
        """Make the primary context current in this thread."""
        call("cuCtxSetCurrent", self._context, doing="make the GPU's context current")

    # Memory -----------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """Free bytes and all bytes."""
        free, total = call("cuMemGetInfo", doing="ask for free memory")
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Device memory."""
        return int(call("cuMemAlloc", max(nbytes, 1), doing=f"allocate {nbytes} bytes"))

    def release(self, address: int) -> None:
        """Give device memory back."""
        call("cuMemFree", address, doing="release memory")

    def allocate_pinned(self, nbytes: int) -> int:
        """Page-locked host memory."""
        flags = self._driver.CU_MEMHOSTALLOC_PORTABLE
        doing = f"pin {nbytes} bytes of host memory"
        return int(call("cuMemHostAlloc", max(nbytes, 1), flags, doing=doing))

    def release_pinned(self, address: int) -> None:
        """Give page-locked memory back."""
        call("cuMemFreeHost", address, doing="release pinned memory")

    def upload(self, address: int, host: int, nbytes: int, stream: int) -> None:
        """Copy from the host."""
        if nbytes:
            call("cuMemcpyHtoDAsync", address, host, nbytes, stream, doing="copy to the GPU")

    def download(self, host: int, address: int, nbytes: int, stream: int) -> None:
        """Copy to the host."""
        if nbytes:
            call("cuMemcpyDtoHAsync", host, address, nbytes, stream, doing="copy from the GPU")

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copy on the device."""
        if nbytes:
            call("cuMemcpyDtoDAsync", to, source, nbytes, stream, doing="copy on the GPU")

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """Set bytes to zero."""
        if nbytes:
            call("cuMemsetD8Async", address, 0, nbytes, stream, doing="clear memory")

    # Streams and events -----------------------------------------------------------------------

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        flag = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(call("cuStreamCreate", flag, doing="create a stream"))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        call("cuStreamDestroy", stream, doing="destroy a stream")

    def synchronize(self, stream: int) -> None:
        """Wait for a stream on the host."""
        call("cuStreamSynchronize", stream, doing="wait for a stream")

    def synchronize_all(self) -> None:
        """Wait for the device on the host.

        Not while another thread captures: waiting for a context with such a stream is invalid and
        ends the capture.
        """
        with self._capturing:
            call("cuCtxSynchronize", doing="wait for the GPU")

    def create_event(self, *, timed: bool = False) -> int:
        """An event."""
        kinds = self._driver.CUevent_flags
        flag = int(kinds.CU_EVENT_DEFAULT if timed else kinds.CU_EVENT_DISABLE_TIMING)
        return int(call("cuEventCreate", flag, doing="create an event"))

    def destroy_event(self, event: int) -> None:
        """Give an event back."""
        call("cuEventDestroy", event, doing="destroy an event")

    def record(self, event: int, stream: int) -> None:
        """Record an event on a stream."""
        call("cuEventRecord", event, stream, doing="record an event")

    def record_in_graph(self, event: int, stream: int) -> None:
        """Record an event whenever the graph runs that is being captured."""
        flag = int(self._driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)
        call("cuEventRecordWithFlags", event, stream, flag, doing="record an event in a graph")

    def wait(self, stream: int, event: int) -> None:
        """Let a stream wait for an event."""
        call("cuStreamWaitEvent", stream, event, 0, doing="wait for an event")

    def synchronize_event(self, event: int) -> None:
        """Wait for an event on the host."""
        call("cuEventSynchronize", event, doing="wait for an event")

    def elapsed_ns(self, start: int, end: int) -> int:
        """Nanoseconds between two events."""
        milliseconds = call("cuEventElapsedTime", start, end, doing="measure a time")
        return round(float(milliseconds) * 1e6)

    # Kernels ----------------------------------------------------------------------------------

    def load_module(self, image: bytes, name: str) -> int:
        """Load a cubin."""
        return int(call("cuModuleLoadData", image, doing=f"load the kernels {name!r}"))

    def unload_module(self, module: int) -> None:
        """Unload a cubin."""
        call("cuModuleUnload", module, doing="unload kernels")

    def function(self, module: int, entry: str, shared_nbytes: int, cluster: int) -> int:
        """A function of a module, with its shared memory and cluster size permitted."""
        handle = call(
            "cuModuleGetFunction", module, entry.encode(), doing=f"find the kernel {entry!r}"
        )
        kinds = self._driver.CUfunction_attribute
        if shared_nbytes > _FREE_SHARED:
            which = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            doing = f"give the kernel {entry!r} {shared_nbytes} bytes of shared memory"
            call("cuFuncSetAttribute", handle, which, shared_nbytes, doing=doing)
        if cluster > _PORTABLE_CLUSTER:
            which = kinds.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            doing = f"let the kernel {entry!r} run in clusters of {cluster}"
            call("cuFuncSetAttribute", handle, which, 1, doing=doing)
        return int(handle)

    def prepare(self, launch: Launch) -> Enqueue:
        """Marshal a launch."""
        driver = self._driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.threads, 1, 1
        config.sharedMemBytes = launch.shared_nbytes
        attributes = self._attributes(launch)
        if attributes:
            config.attrs = attributes
        config.numAttrs = len(attributes)
        return _Prepared(driver, driver.CUfunction(launch.function), config, launch.arguments)

    def _attributes(self, launch: Launch) -> list[Any]:
        driver, found = self._driver, []
        kinds = driver.CUlaunchAttributeID
        if launch.cluster > 1:
            attribute = driver.CUlaunchAttribute()
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            attribute.value.clusterDim.x = launch.cluster
            attribute.value.clusterDim.y = 1
            attribute.value.clusterDim.z = 1
            found.append(attribute)
        if launch.early:
            attribute = driver.CUlaunchAttribute()
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            found.append(attribute)
        return found

    def encode(self, box: EncodedBox) -> bytes:
        """The driver's tensor map: boxes without interleaving, zeros outside of the tensor."""
        driver = self._driver
        word, half = driver.cuuint64_t, driver.cuuint32_t
        dtype = f"CU_TENSOR_MAP_DATA_TYPE_{_MAP_DTYPES[box.dtype]}"
        found = call(
            "cuTensorMapEncodeTiled",
            getattr(driver.CUtensorMapDataType, dtype),
            len(box.sizes),
            box.address,
            [word(size) for size in box.sizes],
            [word(stride) for stride in box.strides],
            [half(size) for size in box.box],
            [half(step) for step in box.steps],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{_SWIZZLES[box.swizzle]}"),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            doing=f"make a tensor map for {box}",
        )
        return ctypes.string_at(found.getPtr(), _TENSOR_MAP_NBYTES)

    # Graphs -----------------------------------------------------------------------------------

    def begin_capture(self, stream: int) -> None:
        """Begin capturing; other threads, and frees by the collector, do not disturb it."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._capturing.acquire()
        try:
            call("cuStreamBeginCapture", stream, mode, doing="begin to capture a graph")
        except BaseException:
            self._capturing.release()
            raise
        self._captured.add(stream)

    def _capture_ended(self, stream: int) -> None:
        if stream in self._captured:
            self._captured.discard(stream)
            self._capturing.release()

    def end_capture(self, stream: int) -> int:
        """End capturing and instantiate the graph."""
        try:
            graph = call("cuStreamEndCapture", stream, doing="capture a graph")
        finally:
            self._capture_ended(stream)
        try:
            return int(call("cuGraphInstantiate", graph, 0, doing="instantiate a graph"))
        finally:
            call("cuGraphDestroy", graph, doing="destroy a graph")

    def abandon_capture(self, stream: int) -> None:
        """End capturing without a graph; what the driver says of a broken capture is known."""
        error, graph = self._driver.cuStreamEndCapture(stream)
        self._capture_ended(stream)
        if not error and int(graph):
            self._driver.cuGraphDestroy(graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Enqueue a graph."""
        call("cuGraphLaunch", graph, stream, doing="launch a graph")

    def destroy_graph(self, graph: int) -> None:
        """Destroy an executable graph."""
        call("cuGraphExecDestroy", graph, doing="destroy a graph")

    def library(self, name: LibraryName) -> Library:
        """A vendor's library, opened once for this device."""
        with self._lock:
            if name not in self._libraries:
                self._libraries[name] = open_library(name, self.create_stream())
            return self._libraries[name]


class _Prepared:
    """A launch that was marshalled; holds everything that the driver reads by address."""

    def __init__(
        self, driver: Any, function: Any, config: Any, arguments: Sequence[Argument]
    ) -> None:
        self._launch, self._as_stream = driver.cuLaunchKernelEx, driver.CUstream
        self._function, self._config = function, config
        self._values = [_marshalled(argument) for argument in arguments]
        count = max(len(self._values), 1)
        self._pointers = (ctypes.c_void_p * count)(*map(ctypes.addressof, self._values))
        self._address = ctypes.addressof(self._pointers)
        self._stream: int | None = None

    def __call__(self, stream: int) -> None:
        if self._stream != stream:
            self._config.hStream = self._as_stream(stream)
            self._stream = stream
        (error,) = self._launch(self._config, self._function, self._address, 0)
        if error:
            check(error, "launch a kernel")


class _Map(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint64 * (_TENSOR_MAP_NBYTES // 8))]


def _marshalled(argument: Argument) -> Any:
    """A C object that holds a parameter's bytes."""
    if argument[0] == "map":
        return _Map.from_buffer_copy(argument[1])
    return _SCALARS[argument[0]](argument[1])
