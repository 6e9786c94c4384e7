"""The intermediate representations and all that is generic about them.

Three small grammars, one expression language: `graph` (which tensors), `compute` (which value at
each index), `loop` (in which order). Knows nothing of operators, models or targets.
"""
