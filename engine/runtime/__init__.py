"""Running plans: engines, contexts, feeds, kernels; needs neither the compiler nor onnx."""
