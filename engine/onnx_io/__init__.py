"""Reading and writing ONNX; the only room that imports onnx."""

from engine.onnx_io.reader import read

__all__ = ["read"]
