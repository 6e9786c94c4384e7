"""How: a Schedule is a tuple of frozen steps that turns a Group of Computes into a PrimFunc."""
