"""What decides an answer's tokens beside the request, as one short word for the caller.

In: the identity of model and library, and the engine's options. Out: OpenAI's
`system_fingerprint`: it differs exactly where the same request and seed could give other tokens.
How many threads, sequences or cached prompts there are changes nothing, so it is not in it.
"""

from __future__ import annotations

import hashlib

from sterna.engine.options import EngineOptions, Speculative
from sterna.engine.sampler import VERSION


def system_fingerprint(identity: str, options: EngineOptions) -> str:
    """A sampled answer may be another one, if as likely, when guesses are verified."""
    said = [identity, str(VERSION)]
    if options.speculative is not Speculative.OFF:
        said += [str(options.speculative), str(options.draft_model), str(options.draft_tokens)]
    return f"fp_{hashlib.sha256(chr(0).join(said).encode()).hexdigest()[:16]}"
