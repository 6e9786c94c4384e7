"""What the null device answers with: an engine without a model, for testing applications.

`Engine(device="null")` and `sterna serve --device null` take a moment to start and no weights.
Everything above the device is the real thing: templates, batches, pages, sampling, grammars. An
answer is words of small letters that follow from the tokens before them, so the same request gets
the same answer; it means nothing. Knows no files.
"""

from __future__ import annotations

from sterna.base.artifact import FORMAT, KVCache, Manifest, Model
from sterna.base.errors import RequestError
from sterna.base.version import __version__
from sterna.engine.fingerprint import system_fingerprint
from sterna.engine.limits import plan
from sterna.engine.options import EngineOptions, KVDtype
from sterna.engine.parts import Parts
from sterna.runtime.null import NullExecutable
from sterna.text.byte_tokenizer import END_ID, byte_tokenizer
from sterna.text.chat_template import DEFAULT, ChatTemplate

NULL = "null"

_PAGE = 16  # tokens
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] or '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Added to the logits: letters alone are chosen, every fourth token is a space or so, and an answer
# ends after some forty.
_SPOKEN = dict.fromkeys(b"abcdefghijklmnopqrstuvwxyz", 8.0) | {ord(" "): 10.0, END_ID: 8.0}


def null_manifest() -> Manifest:
    """A library of no kernels."""
    return Manifest(
        format=FORMAT,
        sterna=__version__,
        target=NULL,
        features=(),
        model=Model(
            model_type=NULL,
            quantization="q0f32",
            fingerprint=NULL,
            vocab_size=END_ID + 1,
            context_window_size=8192,
            prefill_chunk_size=2048,
            max_batch_size=64,
        ),
        kv_cache=KVCache(
            layers=1,
            kv_heads=1,
            head_dim=1,
            page_size=_PAGE,
            dtype="f32",
            page_bytes=8 * _PAGE,
        ),
        params=(),
        entries=(),
        kernels=(),
    )


def null_parts(options: EngineOptions) -> Parts:
    """RequestError for options that only a model has."""
    if options.kv_dtype != KVDtype.AUTO or options.draft_model is not None or options.threads:
        raise RequestError(
            "the null device computes nothing: leave out kv_dtype, draft_model and threads"
        )
    manifest = null_manifest()
    bytes_free = options.memory
    fitting = None if bytes_free is None else bytes_free // manifest.kv_cache.page_bytes
    limits = plan(options, manifest, fitting)
    return Parts(
        executable=NullExecutable(manifest, limits.num_pages, _SPOKEN),
        limits=limits,
        tokenizer=byte_tokenizer(),
        template=ChatTemplate({DEFAULT: _TEMPLATE}, {}),
        model_name=NULL,
        stop_ids=frozenset({END_ID}),
        fingerprint=system_fingerprint(NULL),
    )
