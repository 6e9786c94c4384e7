"""`system_fingerprint` changes exactly where tokens could."""

from null_model import engine

from sterna.engine import fingerprint
from sterna.engine.fingerprint import system_fingerprint


def test_what_may_change_tokens_changes_it(monkeypatch):
    prints = {system_fingerprint("library weights"), system_fingerprint("library other")}
    monkeypatch.setattr(fingerprint, "VERSION", 0)
    prints.add(system_fingerprint("library weights"))
    assert len(prints) == 3


def test_what_changes_no_token_changes_no_fingerprint():
    options = (
        {},
        {"threads": 3, "max_num_sequence": 2, "prefill_mode": "chunked"},
        {"prefix_cache": False, "speculative": "ngram"},
    )
    prints = set()
    for some in options:
        with engine(**some) as model:
            prints.add(model.completions.create(prompt="x", max_tokens=1).system_fingerprint)
    assert len(prints) == 1


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
