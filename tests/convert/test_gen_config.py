"""mlc-chat-config.json: MLC's fields, the model's own values, and options that must fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from source_folder import Make, edit_config

from sterna.base.errors import CheckpointError, TokenizerError, UsageError
from sterna.convert import ChatOptions, gen_config
from sterna.text import conv_template as conversations
from sterna.text.chat_template import ChatTemplate
from sterna.text.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHATML
)


def generate(source: Path, **options: Any) -> dict[str, Any]:
    own = ChatOptions(**options)
    return gen_config(source, source.with_name("OUT"), quantization="q4f16_1", options=own)


def with_template(source: Path, template: str) -> Path:
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))
    (source / "chat_template.jinja").write_text(template)
    return source


def test_fields_of_a_real_model(shared: Path, tmp_path: Path) -> None:
    source = shutil.copytree(shared / "configs" / "TinyLlama-1.1B-Chat-v1.0", tmp_path / "SRC")
    config = generate(source)
    expected = {
        "version": "0.1.0",
        "model_type": "llama",
        "quantization": "q4f16_1",
        "vocab_size": 32000,
        "context_window_size": 2048,
        "sliding_window_size": -1,
        "prefill_chunk_size": 512,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": 32000,
        "temperature": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "top_p": 1.0,
        "tokenizer_info": {
            "token_postproc_method": "byte_fallback",
            "prepend_space_in_encode": True,
            "strip_space_in_decode": True,
        },
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "model_task": "chat",
        "embedding_metadata": None,
    }
    assert {key: config[key] for key in expected} == expected
    assert config["model_config"]["num_key_value_heads"] == 4
    assert config["model_config"]["head_dim"] == 64
    assert config["model_config"]["max_batch_size"] == 8
    written = json.loads((tmp_path / "OUT" / "mlc-chat-config.json").read_text())
    assert written == config
    for name in config["tokenizer_files"]:
        assert (tmp_path / "OUT" / name).read_bytes() == (source / name).read_bytes()
    assert {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"} <= set(
        config["tokenizer_files"]
    )


def test_byte_level_tokenizer_and_llama3_scaling(shared: Path, tmp_path: Path) -> None:
    llama3 = shared / "configs" / "Meta-Llama-3-8B-Instruct"
    source = shutil.copytree(llama3, tmp_path / "SRC")
    shutil.copy(shared / "configs" / "Llama-3.1-8B-Instruct" / "config.json", source)
    config = generate(source, context_window_size=4096)
    assert config["tokenizer_info"] == {
        "token_postproc_method": "byte_level",
        "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }
    assert config["model_config"]["rope_scaling"]["rope_type"] == "llama3"
    assert config["model_config"]["position_embedding_base"] == 500000.0
    assert config["context_window_size"] == 4096
    assert config["model_config"]["context_window_size"] == 4096
    assert 128009 in config["conv_template"]["stop_token_ids"]


def test_sampling_and_token_ids_come_from_the_model(make: Make) -> None:
    source = make()
    edit_config(source, temperature=0.9, repetition_penalty=1.2, eos_token_id=7)
    config = generate(source)
    assert (config["temperature"], config["repetition_penalty"]) == (0.9, 1.2)
    assert config["eos_token_id"] == 7
    given = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": [5, 6]}
    (source / "generation_config.json").write_text(json.dumps(given))
    config = generate(source)
    assert (config["temperature"], config["top_p"], config["top_k"]) == (0.6, 0.9, 20)
    assert config["eos_token_id"] == [5, 6]
    assert {5, 6} <= set(config["conv_template"]["stop_token_ids"])
    assert "min_p" not in config
    (source / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(CheckpointError, match=r"temperature.*number"):
        generate(source)
    (source / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(CheckpointError, match=r"eos_token_id.*token id"):
        generate(source)


def test_context_never_longer_than_the_model(make: Make) -> None:
    source = make()
    assert generate(source)["context_window_size"] == 128
    assert generate(source, context_window_size=64)["prefill_chunk_size"] == 64
    with pytest.raises(UsageError, match="129 is longer than the model's 128"):
        generate(source, context_window_size=129)


@pytest.mark.parametrize(
    ("variant", "longest"),
    [("rope-linear", 128), ("rope-dynamic", 96), ("rope-yarn", 128), ("llama3.1", 256)],
)
def test_scaled_positions_count(make: Make, variant: str, longest: int) -> None:
    source = make(variant)
    assert generate(source, context_window_size=longest)["context_window_size"] == longest
    with pytest.raises(UsageError, match=f"{longest + 1} is longer than the model's {longest}"):
        generate(source, context_window_size=longest + 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context_window_size": 0}, "context_window_size must be a positive"),
        ({"context_window_size": -1}, "context_window_size must be a positive"),
        ({"prefill_chunk_size": 129}, "prefill_chunk_size 129 is more than the context of 128"),
        ({"max_batch_size": 0}, "max_batch_size must be a positive"),
        ({"sliding_window_size": 16}, "llama models have no sliding window"),
        ({"attention_sink_size": 4}, "no sliding window for the sinks"),
        ({"conv_template": "vicuna-99"}, "'vicuna-99' is not known; known: LM, chatml"),
    ],
)
def test_options_that_do_not_fit(make: Make, options: dict[str, Any], words: str) -> None:
    source = make()
    with pytest.raises(UsageError, match=words):
        generate(source, **options)
    assert not source.with_name("OUT").exists()


def test_sliding_window_with_sinks(make: Make) -> None:
    config = generate(make("mistral"), sliding_window_size=32, attention_sink_size=4)
    assert (config["sliding_window_size"], config["attention_sink_size"]) == (32, 4)
    assert config["model_config"]["sliding_window_size"] == 32
    assert config["model_config"]["attention_sink_size"] == 4
    windowed = make("mistral-window", "nested/W")
    assert generate(windowed)["sliding_window_size"] == 16
    off = generate(windowed, sliding_window_size=-1)
    assert off["sliding_window_size"] == -1


def test_tokenizer_must_be_there(make: Make) -> None:
    source = make()
    for path in source.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        generate(source)
    assert not source.with_name("OUT").exists()


def test_an_answer_must_be_able_to_end(make: Make) -> None:
    source = make()
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    (source / "special_tokens_map.json").unlink(missing_ok=True)
    (source / "generation_config.json").write_text('{"eos_token_id": [-1, 1000000000]}')
    with pytest.raises(CheckpointError, match="no answer would ever end"):
        generate(source)


def test_a_start_that_the_vocabulary_lacks(make: Make) -> None:
    source = with_template(make(), "{{ bos_token }}" + CHATML)
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": "<zzz>"}))
    with pytest.raises(TokenizerError, match="'<zzz>', which is no token of the vocabulary"):
        generate(source)


def test_weights_need_not_be_there(make: Make) -> None:
    source = make()
    (source / "model.safetensors").unlink()
    generate(source)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A bird."},
    {"role": "user", "content": "From where?"},
]


def test_conversation_template_is_read_off_the_chat_template(make: Make) -> None:
    source = with_template(make(), CHATML)
    made = generate(source)["conv_template"]
    assert made["name"] == "chat_template"
    template = ChatTemplate.load(source)
    assert template is not None
    assert conversations.render(made, CONVERSATION)[1] == template.render(CONVERSATION)


@pytest.mark.parametrize("name", ["TinyLlama-1.1B-Chat-v1.0", "Meta-Llama-3-8B-Instruct"])
def test_real_chat_templates_as_conversation_templates(
    shared: Path, tmp_path: Path, name: str
) -> None:
    source = shutil.copytree(shared / "configs" / name, tmp_path / "SRC")
    made = generate(source)["conv_template"]
    template, tokenizer = ChatTemplate.load(source), Tokenizer.load(source)
    assert template is not None
    prefix, text = conversations.render(made, CONVERSATION)
    ids = prefix + tokenizer.encode(text, add_special_tokens=False, allow_special=True)
    rendered = template.render(CONVERSATION)
    assert ids == tokenizer.encode(rendered, add_special_tokens=False, allow_special=True)


def test_what_the_object_cannot_say_stays_raw(make: Make) -> None:
    made = generate(with_template(make(), NO_SYSTEM))["conv_template"]
    assert made["name"] == "LM"
    assert conversations.render(made, CONVERSATION[1:2]) == ([], "Who are you?")


@pytest.mark.parametrize(
    "name", ["LM", "chatml", "llama-2", "llama-3", "llama-3_1", "mistral_default", "tinyllama_v1_0"]
)
def test_named_conversation_templates_render(make: Make, name: str) -> None:
    made = generate(make(), conv_template=name)["conv_template"]
    assert made["name"] == name
    text = conversations.render(made, CONVERSATION)[1]
    places = [text.index(message["content"]) for message in CONVERSATION]
    assert places == sorted(places)


def test_named_templates_are_the_published_ones(shared: Path, make: Make) -> None:
    published = shared / "mlc-format" / "Qwen2.5-0.5B-finetune-q4f16_1" / "mlc-chat-config.json"
    theirs = json.loads(published.read_text())["conv_template"]
    ours = generate(make(), conv_template="chatml")["conv_template"]
    assert conversations.render(ours, CONVERSATION) == conversations.render(theirs, CONVERSATION)
    assert ours.keys() == theirs.keys()


def test_conversation_template_from_a_file(make: Make, tmp_path: Path) -> None:
    source, file = make(), tmp_path / "mine.json"
    file.write_text(json.dumps({"roles": {"user": "U", "assistant": "A"}, "seps": ["|"]}))
    made = generate(source, conv_template=str(file))["conv_template"]
    assert (made["name"], made["seps"]) == ("mine", ["|"])
    file.write_text('{"roles": {}}')
    with pytest.raises(TokenizerError, match="conversation template"):
        generate(source, conv_template=str(file))


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_every_variant_has_a_config(make: Make, variant: str) -> None:
    config = generate(make(variant))
    assert config["vocab_size"] == 160 == config["active_vocab_size"]
    assert json.loads(json.dumps(config)) == config
