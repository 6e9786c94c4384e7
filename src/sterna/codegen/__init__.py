"""Tensor IR to source text, one file a target, and the outside compilers it is handed to."""
