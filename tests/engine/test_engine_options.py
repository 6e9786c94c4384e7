"""Options, limits and a folder's chat config: what is accepted, what is refused and how."""

import dataclasses
import json

import msgspec
import pytest
from null_model import manifest

from sterna.base.errors import ArtifactError, OutOfMemory, RequestError, Unavailable
from sterna.engine.chat_config import check_library, read_chat_config
from sterna.engine.limits import plan
from sterna.engine.loader import check_device
from sterna.engine.options import EngineOptions, Mode, SamplingOptions, override


@pytest.mark.parametrize("record", [SamplingOptions, EngineOptions])
def test_every_field_has_a_help_text_and_a_kind(record):
    for option in dataclasses.fields(record):
        assert option.metadata["help"]
        assert option.metadata["kind"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', possible is a number of at least 0"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 1.5}, "top_k is 1.5, possible is an integer of at least 0"),
        ({"min_p": -0.1}, "min_p is -0.1, possible is a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, possible is a number from 0.01"),
        ({"presence_penalty": 3}, "presence_penalty is 3, possible is a number from -2 to 2"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"n": 0}, "n is 0, possible is an integer from 1 to 128"),
        ({"ignore_eos": 1}, "ignore_eos is 1, possible is True or False"),
        ({"logprobs": 5}, "logprobs is 5, possible is True or False"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs=True"),
        ({"stop": ""}, "stop is '', possible is"),
        ({"stop": [1]}, r"stop is \[1\], possible is"),
        ({"stop": ["a"] * 17}, "stop has 17 strings, possible are up to 16"),
        ({"logit_bias": [1]}, "possible is a map of token id to number"),
        ({"logit_bias": {"x": 1}}, "logit_bias has the key 'x', possible are token ids"),
        ({"logit_bias": {1: float("nan")}}, r"logit_bias\[1\] is nan, possible is -100 to 100"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, more than max_tokens, 4"),
    ],
)
def test_bad_values_are_named_with_what_is_possible(given, message):
    with pytest.raises(RequestError, match=message):
        SamplingOptions(**given)


def test_override():
    defaults = SamplingOptions(temperature=0.5, top_p=0.9)
    found = override(
        defaults, {"temperature": 0, "top_p": None, "stop": "x", "logit_bias": {"3": 1}}
    )
    assert (found.temperature, found.top_p, found.stop) == (0, 0.9, ("x",))
    assert found.logit_bias == {3: 1.0}


@pytest.mark.parametrize(
    ("target", "asked", "chunk"),
    [("cpu:x86-64-v3-linux", None, 256), ("cpu:x86-64-v3-linux", 512, 512), ("cuda", None, 512)],
)
def test_a_step_of_a_processor_is_no_longer_than_pays(target, asked, chunk):
    compiled = manifest(context_window_size=4096, prefill_chunk_size=512)
    compiled = msgspec.structs.replace(compiled, target=target)
    options = EngineOptions(prefill_chunk_size=asked)
    assert plan(options, compiled).chunk == chunk
    small = manifest(context_window_size=4096, prefill_chunk_size=64)
    assert plan(EngineOptions(), msgspec.structs.replace(small, target=target)).chunk == 64


def test_modes():
    wide = manifest(context_window_size=16384, max_batch_size=8)
    local = plan(EngineOptions(), wide)
    assert (local.max_sequences, local.window, local.num_pages) == (4, 8192, 2048)
    interactive = plan(EngineOptions(mode="interactive"), wide)
    assert (interactive.max_sequences, interactive.window) == (1, 16384)
    server = plan(EngineOptions(mode=Mode.SERVER), wide)
    assert (server.max_sequences, server.num_pages) == (8, 2 * 8 * 4096)
    forgetful = plan(EngineOptions(mode="server", prefix_cache=False), wide)
    assert forgetful.num_pages == 8 * 4096
    with pytest.raises(
        RequestError, match="mode is 'fast', possible are local, interactive, server"
    ):
        EngineOptions(mode="fast")


def test_limits_stay_within_the_library_and_the_memory():
    with pytest.raises(RequestError, match="max_num_sequence is 9, the library was compiled for"):
        plan(EngineOptions(max_num_sequence=9), manifest())
    with pytest.raises(RequestError, match="context_window_size is 300"):
        plan(EngineOptions(context_window_size=300), manifest())
    assert plan(EngineOptions(), manifest(), fitting_pages=10).window == 40
    with pytest.raises(OutOfMemory, match="for 400 tokens was asked for, there is room for 40"):
        plan(EngineOptions(max_total_tokens=400), manifest(), fitting_pages=10)
    with pytest.raises(OutOfMemory):
        plan(EngineOptions(), manifest(), fitting_pages=0)
    assert plan(EngineOptions(prefill_chunk_size=2), manifest()).max_sequences == 2


def write(folder, config, receipt=None):
    (folder / "mlc-chat-config.json").write_text(json.dumps(config))
    if receipt is not None:
        (folder / "sterna.json").write_text(json.dumps(receipt))
    return read_chat_config(folder)


def test_chat_config(tmp_path):
    template = {"name": "x", "stop_token_ids": [2, 7], "stop_str": ["<|end|>", ""]}
    config = {"temperature": 0.6, "top_p": None, "vocab_size": 9, "conv_template": template}
    found = write(tmp_path, config, {"fingerprint": "abc"})
    assert found.defaults == SamplingOptions(temperature=0.6)
    assert found.stop_ids == {2, 7}
    assert found.stop_strings == ("<|end|>",)
    assert found.fingerprint == "abc"
    assert write(tmp_path, {"conv_template": "llama-2"}).stop_ids == frozenset()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": -2}, "mlc-chat-config.json: temperature is -2"),
        ({"conv_template": {"stop_token_ids": ["x"]}}, "no token id nor a list"),
        ({"conv_template": {"stop_str": [3]}}, "stop_str is"),
    ],
)
def test_a_chat_config_that_makes_no_sense(tmp_path, config, message):
    with pytest.raises(ArtifactError, match=message):
        write(tmp_path, config)


def test_a_library_for_another_model_is_refused(tmp_path):
    found = write(tmp_path, {"model_type": "null"}, {"fingerprint": "e" * 8})
    with pytest.raises(ArtifactError) as error:
        check_library(found, manifest(), tmp_path, tmp_path / "lib.so")
    assert "eeeeeeee" in str(error.value)
    assert "ffffffff" in str(error.value)
    check_library(write(tmp_path, {"model_type": "null"}, {}), manifest(), tmp_path, tmp_path)
    with pytest.raises(ArtifactError, match="its model type is null, the folder's is llama"):
        check_library(write(tmp_path, {"model_type": "llama"}), manifest(), tmp_path, tmp_path)


def test_devices():
    check_device("auto")
    with pytest.raises(Unavailable, match="device is 'abacus', possible are 'auto', 'cpu'"):
        check_device("abacus")
