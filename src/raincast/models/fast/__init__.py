"""Kernels, and the graph node that uses them."""
