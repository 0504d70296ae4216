"""Everything that knows CUDA: kernels before and after compilation, compilers, libraries, devices.

Nothing here is imported by a CPU build or run. Bindings to the driver and to libraries are loaded
by the functions that need them.
"""
