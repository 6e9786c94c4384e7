"""Quantization: the table of schemes, packing and restoring weights, and what that costs."""
