"""Train the byte-level BPE tokenizer of the demo model and write its files.

In: the corpus. Out: `tokenizer.json`, `tokenizer_config.json` (with the chat template) and
`special_tokens_map.json`, in the model's folder. Every digit is a token of its own, so that sums
are sums of digits. It knows nothing of the network.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from examples.demo_model import corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 1024
SPECIAL = (corpus.BOS, corpus.USER, corpus.ASSISTANT, corpus.SYSTEM, corpus.END)
FOLDER = Path(__file__).resolve().parents[2] / "src" / "sterna" / "demo"
CONTEXT = 1024

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{{ '<|system|>Tools:' }}{% for tool in tools %}"
    "{{ ' ' + tool['function']['name'] }}"
    "{{ '(' + tool['function']['parameters']['properties'].keys() | join(', ') + ')' }}"
    "{% endfor %}{{ '<|end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('The demo model knows the roles system, user, assistant and tool.') }}"
    "{% endif %}"
    "{% if message['role'] == 'tool' %}"
    "{{ '<|user|><result>' + message['content'] | trim + '</result>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + (message['content'] or '') | trim }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<call>' + call['function']['name'] + ' ' }}"
    "{{ call['function']['arguments'] | tojson + '</call>' }}"
    "{% endfor %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train(turns: int = 40_000, seed: int = 1) -> Tokenizer:
    """The tokenizer of `turns` exchanges drawn with `seed`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(turns, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{corpus.BOS} $A",
        pair=f"{corpus.BOS} $A {corpus.BOS} $B",
        special_tokens=[(corpus.BOS, tokenizer.token_to_id(corpus.BOS))],
    )
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the three files that Hugging Face readers expect."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": corpus.BOS, "eos_token": corpus.END, "pad_token": corpus.END}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": [corpus.USER, corpus.ASSISTANT, corpus.SYSTEM],
        "chat_template": CHAT_TEMPLATE,
        **named,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", named)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load(folder: Path = FOLDER) -> Tokenizer:
    """The tokenizer that `write` wrote."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _texts(turns: int, seed: int) -> Iterator[str]:
    random_ = random.Random(seed)
    for _ in range(turns):
        drawn = corpus.turn(random_)
        yield drawn.user
        yield drawn.assistant


if __name__ == "__main__":
    write(train(), FOLDER)
