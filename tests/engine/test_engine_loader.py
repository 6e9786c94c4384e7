"""Folder and library to a running engine; the device itself is the null one."""

import json
import shutil

import pytest
from null_model import manifest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from sterna.base.artifact import MANIFEST_MARK, encode
from sterna.base.errors import ArtifactError, OutOfMemory, RequestError, Unavailable, UsageError
from sterna.engine.engine import Engine
from sterna.engine.loader import Located, share_memory
from sterna.engine.options import EngineOptions
from sterna.runtime import cpu
from sterna.runtime.memory import ALIGNMENT, memory_plan
from sterna.runtime.null import NullExecutable

CONV = {
    "name": "plain",
    "system_template": "",
    "roles": {"user": "U", "assistant": "A"},
    "seps": ["\n"],
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
    "stop_str": ["###"],
    "stop_token_ids": [7],
}
JINJA = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"


@pytest.fixture
def located(tmp_path, monkeypatch):
    """A model folder, and a "library" that holds nothing but a manifest."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    folder = tmp_path / "M"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    save(folder / "tokenizer_config.json", {"eos_token": "</s>", "chat_template": JINJA})
    save(folder / "mlc-chat-config.json", {"temperature": 0, "conv_template": CONV})
    save(folder / "sterna.json", {"fingerprint": "f" * 8})
    library = tmp_path / "M.so"
    data = encode(manifest())
    library.write_bytes(MANIFEST_MARK + len(data).to_bytes(8, "little") + data)

    def load(path, weights, *, num_pages, threads, index, packed):
        assert path == library
        return NullExecutable(manifest(), num_pages)

    monkeypatch.setattr(cpu, "load", load)
    return Located(folder, library, {})


def save(path, value):
    path.write_text(json.dumps(value))


def start(located, **options):
    return Engine("M", device="cpu", resolve=lambda *_: located, **options)


def test_a_folder_and_its_library(located):
    with start(located) as model:
        parts = model._parts
        assert model.model_name == "M"
        assert model.has_chat_template
        assert parts.stop_ids == {7, 256}
        assert parts.stop_strings == ("###",)
        assert parts.defaults.temperature == 0
        asked = [{"role": "user", "content": "hi"}]
        first = model.chat.completions.create(messages=asked, max_tokens=5)
        again = model.chat.completions.create(messages=asked, max_tokens=5)
        assert first.usage.prompt_tokens == len("user=hi;")
        assert first.choices == again.choices


def test_mlc_folders_without_a_template_use_their_conversation(located):
    save(located.folder / "tokenizer_config.json", {"eos_token": "</s>"})
    with start(located) as model:
        asked = [{"role": "user", "content": "hi"}]
        result = model.chat.completions.create(messages=asked, max_tokens=2)
        assert model.has_chat_template
        assert result.usage.prompt_tokens > len("hi")


def test_options_reach_the_device(located):
    with start(located, options=EngineOptions(max_total_tokens=40), mode="server") as model:
        assert model.metrics()["pages_total"] == 10
        assert model.context_window == 40
        with pytest.raises(RequestError, match="41 tokens, the context window is 40"):
            model.completions.create(prompt="a" * 41)


def test_models_side_by_side_share_the_memory(located, monkeypatch):
    """Each takes what it needs and half of the rest: together no more than there is."""
    monkeypatch.setattr(cpu, "available_memory", lambda index=0: 10_000_000)
    one, other = share_memory([located, located], EngineOptions(mode="server", threads=1))
    assert one.memory == other.memory
    assert 4_499_000 <= one.memory <= 4_500_000
    asked = share_memory([located] * 3, EngineOptions(memory=3_000_000, threads=1))
    assert 2_999_000 <= sum(options.memory for options in asked) <= 3_000_000
    assert share_memory([located], EngineOptions()) == [EngineOptions()]
    least = share_memory([located] * 2, EngineOptions(memory=1, threads=1))
    assert least[0].memory > 1  # named as out of memory when it is loaded


def test_memory_bounds_the_cache(located):
    page = manifest().kv_cache.page_bytes
    least = memory_plan(manifest(), 0, 1).total + ALIGNMENT
    for pages in (20, 50):
        options = EngineOptions(memory=least + pages * page, threads=1)
        with start(located, options=options, mode="server") as model:
            assert model.metrics()["pages_total"] == pages
    with pytest.raises(OutOfMemory, match="room for 0"):
        start(located, options=EngineOptions(memory=1, threads=1), mode="server")


def test_a_draft_model_is_found_loaded_and_asked(located):
    asked = []

    def resolve(model, library, device):
        asked.append(model)
        return located

    options = EngineOptions(speculative="draft", draft_model="small", max_total_tokens=40)
    with Engine("M", device="cpu", resolve=resolve, options=options, mode="server") as model:
        model.completions.create(prompt="ab", max_tokens=9, temperature=0, ignore_eos=True)
        assert model.metrics()["draft_tokens_accepted"] > 3
        assert model._core._speculator.source._limits.num_pages == 10
    assert asked == ["M", "small"]


def test_a_draft_model_of_another_vocabulary_is_refused(located, tmp_path):
    other = tmp_path / "small"
    shutil.copytree(located.folder, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("</s>", "<end>"))
    config = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").write_text(config.replace("</s>", "<end>"))
    small = Located(other, located.library, {})
    options = EngineOptions(speculative="draft", draft_model="small")
    with pytest.raises(RequestError, match="token 256 is '<end>' there and '</s>' in the model"):
        Engine(
            "M", resolve=lambda model, *_: small if model == "small" else located, options=options
        )


def test_what_was_loaded_is_closed_when_the_rest_fails(located, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(NullExecutable, "close", lambda device: closed.append(device))
    (tmp_path / "file").write_text("")
    options = EngineOptions(
        prefix_cache_dir=str(tmp_path / "file"), speculative="draft", draft_model="small"
    )
    with pytest.raises(UsageError, match="prefix cache's folder"):
        Engine("M", resolve=lambda *_: located, options=options)
    assert len(closed) == 2


def test_a_prompt_that_is_not_unicode(located):
    with start(located) as model, pytest.raises(RequestError, match="surrogate"):
        model.completions.create(prompt="a\ud800")


def test_another_models_library_is_refused(located):
    save(located.folder / "sterna.json", {"fingerprint": "e" * 8})
    with pytest.raises(ArtifactError, match="compiled for another model"):
        start(located)


def test_an_unknown_device_is_refused_before_anything_is_located():
    with pytest.raises(Unavailable, match="abacus"):
        Engine("M", device="abacus", resolve=lambda *_: pytest.fail("looked for the model"))
