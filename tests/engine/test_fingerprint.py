"""`system_fingerprint` changes exactly where tokens could."""

from null_model import engine

from sterna.engine import fingerprint
from sterna.engine.fingerprint import system_fingerprint
from sterna.engine.options import EngineOptions

PLAIN = system_fingerprint("library weights", EngineOptions())


def test_what_changes_no_token_changes_no_fingerprint():
    for options in (
        EngineOptions(threads=3),
        EngineOptions(mode="server", max_num_sequence=2, prefill_mode="chunked"),
        EngineOptions(prefix_cache=False, draft_tokens=7),
    ):
        assert system_fingerprint("library weights", options) == PLAIN


def test_what_may_change_tokens_changes_it(monkeypatch):
    others = {
        system_fingerprint("library other", EngineOptions()),
        system_fingerprint("library weights", EngineOptions(speculative="ngram")),
        system_fingerprint("library weights", EngineOptions(speculative="ngram", draft_tokens=7)),
    }
    monkeypatch.setattr(fingerprint, "VERSION", 0)
    others.add(system_fingerprint("library weights", EngineOptions()))
    assert len(others | {PLAIN}) == 5


def test_every_reply_says_it():
    with engine() as one, engine(vocab_size=256) as other:
        prints = set()
        for asked in (one, other):
            made = asked.completions.create(prompt="x", max_tokens=1)
            message = [{"role": "user", "content": "x"}]
            chat = asked.chat.completions.create(messages=message, max_tokens=1)
            chunks = asked.chat.completions.create(messages=message, max_tokens=1, stream=True)
            found = {made.system_fingerprint, chat.system_fingerprint}
            found |= {chunk.system_fingerprint for chunk in chunks}
            assert len(found) == 1
            prints |= found
        assert len(prints) == 2
        assert None not in prints
