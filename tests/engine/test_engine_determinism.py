"""The same request gives the same tokens, whatever runs beside it and however it is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from null_model import engine

PROMPTS = [f"{name} flew {'over the ice ' * i}to" for i, name in enumerate("ABCDEFGH")]
OPTIONS = {"max_tokens": 40, "seed": 7, "return_token_ids": True, "ignore_eos": True}


def tokens(model, prompts, **options):
    with model as running:
        result = running.completions.create(prompt=prompts, **(OPTIONS | options))
        running._core.scheduler.check()
        return [choice.token_ids for choice in result.choices], running.metrics()


@pytest.fixture(scope="module")
def alone():
    """Each prompt in an engine of its own, whole prefill."""
    return [
        tokens(engine(prefill_chunk_size=256, max_num_sequence=1), prompt)[0][0]
        for prompt in PROMPTS
    ]


def test_answers_differ_and_are_long(alone):
    assert len({tuple(answer) for answer in alone}) == len(PROMPTS)
    assert all(len(answer) == 40 for answer in alone)


def test_batch_of_8_equals_batch_of_1(alone):
    found, metrics = tokens(engine(prefill_chunk_size=256), PROMPTS)
    assert found == alone
    assert metrics["preemptions"] == 0


@pytest.mark.parametrize("chunk", [8, 9, 13, 31])
def test_chunked_prefill_equals_whole(alone, chunk):
    assert tokens(engine(prefill_chunk_size=chunk), PROMPTS)[0] == alone


@pytest.mark.parametrize("pages", [37, 45, 64])
def test_preempted_equals_uninterrupted(alone, pages):
    found, metrics = tokens(engine(num_pages=pages), PROMPTS)
    assert metrics["preemptions"] > 0
    assert found == alone


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_page_size_does_not_matter(alone, page_size):
    assert tokens(engine(page_size=page_size, num_pages=2048), PROMPTS)[0] == alone


def test_sampled_tokens_depend_on_the_seed_alone(alone):
    assert tokens(engine(prefill_chunk_size=256), PROMPTS[0], seed=8)[0][0] != alone[0]


def test_n_answers_share_the_prompt_and_differ():
    with engine(prefill_chunk_size=16) as model:
        result = model.completions.create(prompt=PROMPTS[5], n=5, **OPTIONS)
        metrics = model.metrics()
    answers = [tuple(choice.token_ids) for choice in result.choices]
    assert len(set(answers)) == 5
    whole = len(PROMPTS[5])
    assert metrics["prompt_tokens"] < 2 * whole  # four of five prompts come from shared pages
    single = tokens(engine(), PROMPTS[5], n=1)[0][0]
    assert list(answers[0]) == single


def test_n_answers_do_not_depend_on_sharing_or_preemption():
    roomy = tokens(engine(), PROMPTS[5], n=4)[0]
    tight, metrics = tokens(engine(num_pages=35), PROMPTS[5], n=4)
    assert metrics["preemptions"] > 0
    assert tight == roomy


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    pages=st.integers(33, 80),
    chunk=st.integers(1, 40),
    sequences=st.integers(1, 8),
    page_size=st.integers(1, 9),
)
def test_no_limit_changes_the_output(alone, pages, chunk, sequences, page_size):
    model = engine(
        num_pages=-(-pages * 4 // page_size),
        prefill_chunk_size=min(chunk, 32),
        max_num_sequence=sequences,
        page_size=page_size,
    )
    assert tokens(model, PROMPTS[:5])[0] == alone[:5]
