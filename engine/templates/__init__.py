"""Kernel templates for GPUs: text with the parts that depend on a layer spliced in."""
