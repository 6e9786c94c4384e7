"""The run wing's ground floor: load a library, hold memory, run a step. Knows no IR, no text."""
