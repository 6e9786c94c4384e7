"""The demo model's folder is whole and small, and its corpus is what the card says."""

import json
import random
import struct

import jinja2
import pytest
from examples.demo_model import answers, corpus, grammar, sums
from examples.demo_model.words import ANIMALS, RARE_ANIMALS
from tokenizers import Tokenizer

from sterna.demo import FOLDER

MEGABYTE = 1_000_000


def config() -> dict[str, object]:
    return json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


def header() -> dict[str, dict[str, object]]:
    with (FOLDER / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found = json.loads(file.read(length))
    found.pop("__metadata__")
    return found


@pytest.fixture(scope="module")
def text() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "README.md",
        "figures.json",
    ],
)
def test_the_folder_holds_every_file(name: str) -> None:
    assert (FOLDER / name).stat().st_size > 0


def test_the_folder_is_under_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8 * MEGABYTE


def test_the_model_has_one_to_three_million_parameters_in_float16() -> None:
    sizes = [record["data_offsets"][1] - record["data_offsets"][0] for record in header().values()]
    assert {record["dtype"] for record in header().values()} == {"F16"}
    assert 1_000_000 < sum(sizes) // 2 < 3_000_000


def test_every_matrix_suits_groups_of_128() -> None:
    matrices = [record["shape"] for record in header().values() if len(record["shape"]) == 2]
    assert len(matrices) > 1
    assert all(columns % 128 == 0 and rows % 32 == 0 for rows, columns in matrices)


def test_the_config_is_a_llama_that_agrees_with_its_weights(text: Tokenizer) -> None:
    found, shapes = config(), {name: record["shape"] for name, record in header().items()}
    assert found["architectures"] == ["LlamaForCausalLM"]
    assert found["tie_word_embeddings"] is True
    assert "lm_head.weight" not in shapes
    assert shapes["model.embed_tokens.weight"] == [found["vocab_size"], found["hidden_size"]]
    assert text.get_vocab_size() == found["vocab_size"]
    assert found["eos_token_id"] == text.token_to_id(corpus.END)
    assert found["bos_token_id"] == text.token_to_id(corpus.BOS)


def test_the_chat_template_writes_what_the_model_was_trained_on() -> None:
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = jinja2.Environment().from_string(settings["chat_template"])
    messages = [{"role": "user", "content": " What is 1 + 2? "}]
    written = template.render(
        messages=messages, bos_token=settings["bos_token"], add_generation_prompt=True
    )
    assert written == corpus.prompt("What is 1 + 2?")


@pytest.mark.parametrize("said", ["23 + 45 = 68.", "Ünïcode, tabs\t and 100%", '"Hi," said Tom.'])
def test_the_tokenizer_gives_back_what_it_took(text: Tokenizer, said: str) -> None:
    assert text.decode(text.encode(said).ids) == said


def test_every_digit_is_a_token(text: Tokenizer) -> None:
    assert text.encode("2345 67", add_special_tokens=False).tokens == [*"2345", "Ġ", *"67"]


def test_the_corpus_follows_from_its_seed() -> None:
    def drawn(seed: int) -> list[corpus.Turn]:
        random_ = random.Random(seed)
        return [corpus.turn(random_) for _ in range(100)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_grammar_recognises_its_own_stories_and_their_sentences() -> None:
    random_ = random.Random(1)
    for _ in range(300):
        animal = random_.choice(ANIMALS)
        story = grammar.write(random_, animal)
        name = grammar.name_in(story)
        assert name is not None
        assert grammar.is_story(story, animal)
        assert 4 <= len(grammar.sentences(story)) <= 7
        assert all(grammar.is_sentence(s, animal, name) for s in grammar.sentences(story))
        assert grammar.animals_in(story) == {animal}


@pytest.mark.parametrize(
    "change",
    [
        ("fox", "bear"),
        ("She ", "He "),
        (" was ", " were "),
        ("drum ", "kite "),
        (".", ""),
    ],
)
def test_the_grammar_refuses_a_broken_story(change: tuple[str, str]) -> None:
    story = (
        "Ruby was a shy fox who lived by the sea. Ruby was kind and gentle. One day, Ruby lost her "
        "little drum. She looked under the bed and behind the fence, but it was not there. At "
        "last, Ruby found the little drum under a bush. Ruby went home and slept well."
    )
    assert grammar.is_story(story, "fox")
    broken = story.replace(*change, 1)
    assert broken != story
    assert not grammar.is_story(broken, "fox")


def test_a_tenth_of_all_sums_is_held_out_with_its_mirror_images() -> None:
    held_out = sums.all_held_out()
    assert 0.08 < len(held_out) / (2 * sums.LIMIT**2) < 0.12
    assert all(sums.Sum(s.b, s.sign, s.a).held_out for s in held_out)


def test_training_never_draws_a_held_out_sum() -> None:
    random_ = random.Random(1)
    assert not any(sums.draw(random_).held_out for _ in range(5000))


def test_sums_are_answered_right() -> None:
    assert sums.Sum(23, "+", 45).answer == "23 + 45 = 68."
    assert sums.Sum(61, "-", 17).answer == "61 - 17 = 44."
    assert sums.Sum(3, "-", 17).answer == "3 - 17 = -14."


def test_no_phrasing_belongs_to_two_topics() -> None:
    asked = [question for topic in answers.TOPICS_ON_STERNA for question in topic.questions]
    assert len(set(asked)) == len(asked)


def test_rare_animals_stay_out_of_training() -> None:
    assert not set(RARE_ANIMALS) & set(ANIMALS)


def test_the_figures_keep_the_promise() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    for stored_as in ("float16", "4 bits"):
        measured = figures[stored_as]
        assert measured["sums_held_out"]["right"] > 0.95
        assert measured["stories"]["sentences_grammatical"] > 0.95
        assert measured["stories"]["on_the_animal_asked_for"] > 0.95
        assert measured["stories"]["sentences_with_the_same_hero"] > 0.95
        assert measured["stories"]["no_other_animal"] > 0.95


def test_the_card_quotes_the_figures() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for group, name in (
        ("sums_held_out", "right"),
        ("stories", "sentences_grammatical"),
        ("stories", "stories_grammatical_and_consistent"),
        ("questions", "held_out_phrasings"),
    ):
        shares = [figures[stored_as][group][name] for stored_as in figures]
        assert " | ".join(f"{100 * share:.1f}" for share in shares) in card
