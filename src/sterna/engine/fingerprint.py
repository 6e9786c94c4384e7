"""What decides an answer's tokens beside the request, as one short word for the caller.

In: the identity of model and library. Out: OpenAI's
`system_fingerprint`: it differs exactly where the same request and seed could give other tokens.
How many threads, sequences, cached prompts or right guesses there are changes nothing, so it is
not in it.
"""

from __future__ import annotations

import hashlib

from sterna.engine.sampler import VERSION


def system_fingerprint(identity: str) -> str:
    """Of a model and library, and of this sampler."""
    said = f"{identity}\0{VERSION}"
    return f"fp_{hashlib.sha256(said.encode()).hexdigest()[:16]}"
