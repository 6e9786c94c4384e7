"""The corpus: conversations on stories, sums and Sterna, drawn from the grammar and word lists.

In: a random generator. Out: conversations as lists of `Turn`, and the text of a conversation in the
chat format that the tokenizer's template writes. The same generator state gives the same text.
It knows nothing of token ids.
"""

import random
from dataclasses import dataclass

from examples.demo_model import answers, grammar, sums
from examples.demo_model.words import ANIMALS

BOS, SYSTEM, USER, ASSISTANT, END = "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

_ASK_STORY = (
    "Tell me a story about {animal}.", "Tell me a story about {animal}",
    "Write a story about {animal}.", "A story about {animal}, please.",
    "Can you tell me a story about {animal}?", "Story about {animal}",
    "Tell me a little story about {animal}.", "Tell me a tale about {animal}.",
    "Please tell me a story about {animal}.", "I want a story about {animal}.",
    "Write a short story about {animal}.", "Tell a story about {animal}.",
    "Now a story about {animal}.", "Give me a story about {animal}.",
    "I would like to hear a story about {animal}.", "Make up a story about {animal}.",
    "And a story about {animal}?",
)  # fmt: skip
_ASK_ANY_STORY = (
    "Tell me a story.", "Tell me a story", "Write a story.", "Can you tell me a story?",
    "Tell me another story.", "Another story, please.", "A story, please.",
)  # fmt: skip
_SYSTEM = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Be brief.",
    "Answer politely.", "You are a helpful, honest assistant. Answer in one sentence.",
    "You are the demo of Sterna.",
)  # fmt: skip
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user says and what the model is to answer."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Mixture:
    """How many exchanges in a hundred are of each kind, and the share of made-up animals."""

    sums: int = 70
    stories: int = 11
    topics: int = 14
    unknown: int = 5
    made_up: float = 1 / 6


def story_turn(random_: random.Random, made_up: float = 1 / 6) -> Turn:
    """A request for a story, and the story; a share of the animals is made up, to teach copying."""
    animal = random_.choice(ANIMALS)
    if random_.random() < 0.08:
        ask = random_.choice(_ASK_ANY_STORY)
    else:
        animal = made_up_animal(random_) if random_.random() < made_up else animal
        ask = ask_story(random_, animal)
    return Turn(_casual(ask, random_), grammar.write(random_, animal))


def ask_story(random_: random.Random, animal: str) -> str:
    """A request for a story about `animal`."""
    return random_.choice(_ASK_STORY).format(animal=grammar.with_article(animal))


def made_up_animal(random_: random.Random) -> str:
    """A word that could name an animal, such as `belko` or `tamuris`."""
    syllables = random_.choice((2, 2, 3))
    word = "".join(
        random_.choice(_CONSONANTS)
        + random_.choice(_VOWELS)
        + random_.choice(("", "", "n", "r", "l"))
        for _ in range(syllables)
    )
    return word + random_.choice(("", "", "s", "t", "k"))


def sum_turn(random_: random.Random) -> Turn:
    """A sum that is not held out, and its answer."""
    drawn = sums.draw(random_)
    return Turn(_casual(random_.choice(sums.phrasings(drawn)), random_), drawn.answer)


def topic_turn(random_: random.Random) -> Turn:
    """A question on Sterna or on the model itself, in a phrasing that is not held out."""
    topic = random_.choice(answers.TOPICS_ON_STERNA)
    question = random_.choice(topic.questions[answers.HELD_OUT :])
    return Turn(_casual(question, random_), topic.answer)


def unknown_turn(random_: random.Random) -> Turn:
    """A question out of reach, and the honest answer."""
    if random_.random() < 0.4:
        return Turn(_casual(answers.out_of_range(random_), random_), answers.OUT_OF_RANGE)
    return Turn(_casual(answers.unknown(random_), random_), answers.UNKNOWN)


def turn(random_: random.Random, mixture: Mixture | None = None) -> Turn:
    """One exchange; by tokens, about half of the default mixture is sums."""
    mixture = mixture or Mixture()
    if random_.random() < mixture.sums / 100:
        return sum_turn(random_)
    weights = (mixture.stories, mixture.topics, mixture.unknown)
    kind = random_.choices((story_turn, topic_turn, unknown_turn), weights=weights)[0]
    return story_turn(random_, mixture.made_up) if kind is story_turn else kind(random_)


def system_message(random_: random.Random) -> str | None:
    """A system message, one time in eight: the model learns to take no notice of it."""
    return random_.choice(_SYSTEM) if random_.random() < 1 / 8 else None


def prompt(user: str, system: str | None = None) -> str:
    """The text of a conversation that waits for its first answer."""
    before = "" if system is None else f"{SYSTEM}{system}{END}"
    return f"{BOS}{before}{USER}{user}{END}{ASSISTANT}"


def exchange(turn: Turn) -> str:
    """The text of one finished exchange."""
    return f"{USER}{turn.user}{END}{ASSISTANT}{turn.assistant}{END}"


def _casual(ask: str, random_: random.Random) -> str:
    """The question as people type it: at times in lower case, or without its last mark."""
    if random_.random() < 0.25:
        ask = ask[0].lower() + ask[1:] if random_.random() < 0.4 else ask.lower()
    if random_.random() < 0.2 and ask[-1] in ".?!":
        ask = ask[:-1]
    return ask
