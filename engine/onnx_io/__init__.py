"""Reading and writing ONNX; the only room that imports onnx."""

from engine.onnx_io.reader import read
from engine.onnx_io.writer import write

__all__ = ["read", "write"]
