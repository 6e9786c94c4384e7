"""What an engine is made of: a loaded model and its text side, ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sterna.engine.dialect import Dialect, read_dialect
from sterna.engine.grammar import Grammars
from sterna.engine.grid_reader import GridReader
from sterna.engine.image_reader import ImageReader
from sterna.engine.limits import Limits
from sterna.engine.options import SamplingOptions
from sterna.runtime.executable import Executable
from sterna.text.marking import Marker
from sterna.text.template import Template
from sterna.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Parts:
    """A chat is rendered by `template` or, in MLC's folders without one, by `conv_template`.

    `stop_ids` and `stop_strings` end every answer; callers may add strings of their own.
    `adapters` are the numbers of those that requests may name instead of the model. What follows
    from template and tokenizer is found out once: how the model calls tools and thinks, the
    grammars' view of its tokens, what of a user's text must not become special tokens.
    """

    executable: Executable
    limits: Limits
    tokenizer: Tokenizer
    template: Template | None
    model_name: str
    defaults: SamplingOptions = field(default_factory=SamplingOptions)
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    conv_template: Mapping[str, Any] | None = None
    fingerprint: str | None = None  # what a reply says of all this
    adapters: Mapping[str, int] = field(default_factory=dict)
    images: ImageReader | GridReader | None = None  # of a model that takes images
    dialect: Dialect = field(init=False)
    grammars: Grammars = field(init=False)
    marker: Marker = field(init=False)

    def __post_init__(self) -> None:
        specials = self.tokenizer.special_tokens
        grammars = Grammars(self.tokenizer, self.vocabulary, self.stop_ids)
        object.__setattr__(self, "dialect", read_dialect(self.template, specials))
        object.__setattr__(self, "grammars", grammars)
        object.__setattr__(self, "marker", Marker(specials))

    @property
    def vocabulary(self) -> int:
        """Ids that can be told apart: a model's rows past the tokenizer's end are padding."""
        return min(self.executable.manifest.model.vocab_size, self.tokenizer.vocab_size)
