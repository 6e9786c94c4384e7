"""Formats of weights, one a file: what their configurations say, and where their parts lie."""
