"""The network of `enginefarm demo`: a ShuffleNet whose weights are made from a seed.

`benchmarks.export_demo` wrote the files beside this one.
"""
