"""A tokenizer that needs no files: a token is a byte, and one special token ends an answer.

For the null device, which has no model to take a tokenizer from.
"""

from __future__ import annotations

from sterna.text.decoding import ALPHABET
from sterna.text.special_tokens import SpecialTokens
from sterna.text.tokenizer import Tokenizer

END = "<|end|>"
END_ID = 256


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are bytes, `END_ID` is `END`."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, pre_tokenizers
    from tokenizers.models import BPE

    backend = Backend(BPE(vocab=dict(ALPHABET), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    special = SpecialTokens({"eos_token": END}, frozenset({"eos_token"}), (), (END_ID,))
    return Tokenizer(backend, special)
