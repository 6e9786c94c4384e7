"""The grammar of the little stories: one table that both writes stories and recognises them.

In: a random generator and an animal, or a text. Out: a story, or whether the text is one.
A rule is a tuple of alternatives; `{symbol}` in an alternative refers to another rule.
Symbols in `BOUND` keep their first value for the whole story, so a fox that loses a red kite finds
a red kite; pronouns follow from the name. The grammar has no recursion, so both directions are
plain walks. It knows nothing of chats or tokens.
"""

import random
import re
from collections.abc import Iterator, Mapping

from examples.demo_model.words import ANIMALS, HE_NAMES, RARE_ANIMALS, SHE_NAMES

Bindings = dict[str, str]

BOUND = frozenset({"animal", "name", "place", "thing", "friend", "food", "gift", "wish", "weather"})

_PRONOUNS: Mapping[str, tuple[str, str]] = {
    "he": ("he", "she"),
    "him": ("him", "her"),
    "his": ("his", "her"),
    "He": ("He", "She"),
    "His": ("His", "Her"),
}

RULES: Mapping[str, tuple[str, ...]] = {
    **_PRONOUNS,
    "animal": ANIMALS,
    "name": HE_NAMES + SHE_NAMES,
    "story": (
        "{opening} {plot} {ending}",
        "{opening} {detail} {plot} {ending}",
    ),
    "plot": (
        "{lost} {search} {found}",
        "{lost} {search} {ask} {found}",
        "{storm} {shelter} {after}",
        "{storm} {fear} {shelter} {after}",
        "{hungry} {meal}",
        "{hungry} {walk} {meal} {share}",
        "{lonely} {meet} {play}",
        "{lonely} {walk} {meet} {play}",
        "{dream} {practice} {success}",
        "{dream} {doubt} {practice} {success}",
        "{make} {give}",
        "{make} {walk} {give}",
    ),
    "opening": (
        "Once upon a time, there was {a_kind} {animal} named {name}.",
        "Once there was {a_kind} {animal} named {name}, who lived {place}.",
        "{name} was {a_kind} {animal} who lived {place}.",
        "There once lived {a_kind} {animal} named {name}.",
        "Long ago, {a_kind} {animal} named {name} lived {place}.",
    ),
    "detail": (
        "{He} loved to {pastime}.",
        "Every {time}, {name} liked to {pastime}.",
        "{His} home was {home}.",
        "{name} was {trait} and {trait2}.",
        "{He} was the most {trait3} {animal} of all.",
    ),
    "lost": (
        "One {time}, {name} lost {his} {thing}.",
        "One {time}, the {animal} could not find {his} {thing}.",
        "One {time}, the wind took {his} {thing} away.",
    ),
    "search": (
        "{He} looked {where} and {where2}, but it was not there.",
        "{name} looked {where}, but {he} saw only {nothing}.",
        "The {animal} searched {where} until {he} was tired.",
    ),
    "ask": (
        '"Have you seen my {thing}?" {he} asked {friend}.',
        "Then {he} asked {friend} for help.",
        "{name} met {friend} and asked for help.",
    ),
    "found": (
        "At last, {name} found the {thing} {where3}.",
        "In the end, the {thing} was {where3}.",
        "Then {he} saw the {thing} {where3}.",
    ),
    "storm": (
        "One {time}, {weather} came to the {land}.",
        "One {time}, {weather} came while {name} was far from home.",
        "One {time}, the {animal} saw that {weather} was near.",
    ),
    "fear": (
        "{name} was afraid, but {he} did not cry.",
        "The {animal} felt cold and small.",
        "{His} heart beat very fast.",
    ),
    "shelter": (
        "{He} hid {hiding} and waited.",
        "{name} ran as fast as {he} could and hid {hiding}.",
        "The {animal} found a dry place {hiding}.",
    ),
    "after": (
        "When it was over, the sun came out and the {land} was bright again.",
        "After a while, it was quiet, and {name} came out to see the stars.",
        "Soon it was over, and {he} saw a rainbow above the {land}.",
    ),
    "hungry": (
        "One {time}, {name} was very hungry.",
        "One {time}, the {animal} had nothing to eat.",
        "One {time}, {name} woke up and wanted {food}.",
    ),
    "walk": (
        "So {he} walked {way}.",
        "{name} went {way}, and {he} sang a song.",
        "The {animal} went {way} to see what was there.",
    ),
    "meal": (
        "{He} found {food} {where3}.",
        "There {he} met {friend}, who gave {him} {food}.",
        "Then {name} saw {food} {where3}, and {he} ate until {he} was full.",
    ),
    "share": (
        "{He} kept a little for {friend}.",
        "{name} shared it with {friend}.",
        "There was enough for {friend} too.",
    ),
    "lonely": (
        "One {time}, {name} felt lonely.",
        "One {time}, the {animal} wished for a friend.",
        "{name} had no one to play with.",
    ),
    "meet": (
        "Then {he} met {friend} {where3}.",
        "Then {friend} came by and smiled at {him}.",
        '"Do you want to play with me?" asked {friend}.',
    ),
    "play": (
        "They played together until the {night}.",
        "{name} and {the_friend} sang and danced all day.",
        "They told each other stories and laughed a lot.",
    ),
    "dream": (
        "{name} wanted to {wish}.",
        "One {time}, {name} said that {he} wanted to {wish}.",
        "The {animal} had a dream: {he} wanted to {wish}.",
    ),
    "doubt": (
        '"You are too small for that," said {friend}.',
        "{friend2} said that no {animal} could do it.",
        "At first it was too hard for {him}.",
    ),
    "practice": (
        "{He} tried again every {time}.",
        "{name} tried and tried, and {he} did not give up.",
        "So the {animal} asked {friend} to help {him}.",
    ),
    "success": (
        "One day, {name} did it, and {he} was very proud.",
        "At last the {animal} could {wish}.",
        "After many days, {he} could {wish} better than anyone.",
    ),
    "make": (
        "One {time}, {name} made {gift} for {friend}.",
        "One {time}, the {animal} found {gift} and thought of {friend}.",
    ),
    "give": (
        "When {the_friend} saw it, there was a big smile.",
        '"Thank you, {name}," said {the_friend}.',
        "{name} gave it to {the_friend} and sat down to rest.",
    ),
    "ending": (
        "{name} went home and slept well.",
        "From that day on, the {animal} was never {sad} again.",
        "{name} was the happiest {animal} in the {land}.",
        "That {night}, {name} was happy and told everyone about it.",
        "And so {name} learned that {lesson}.",
        "{His} friends still tell the story of {name} the {animal}.",
    ),
    "a_kind": (
        "a little", "a small", "a young", "an old", "a brave", "a clever", "a kind", "a curious",
        "a gentle", "a shy", "a funny", "a sleepy", "a happy", "a quiet", "an honest",
    ),
    "place": (
        "in a green forest", "near a river", "on a high hill", "by the sea", "in a quiet valley",
        "on a small island", "at the edge of a village", "in an old garden", "behind a mill",
        "beside a blue lake",
    ),
    "home": (
        "warm and dry", "small but cozy", "full of flowers", "under a big tree",
        "made of leaves and grass",
    ),
    "pastime": (
        "sing", "dance in the rain", "count the clouds", "look at the moon", "tell stories",
        "collect shells", "sleep in the sun", "jump over stones", "listen to the wind",
    ),
    "time": ("morning", "day", "evening", "spring day", "summer day", "winter morning"),
    "night": ("night", "evening"),
    "trait": ("kind", "brave", "clever", "patient", "cheerful"),
    "trait2": ("gentle", "quick", "honest", "polite", "playful"),
    "trait3": ("curious", "careful", "friendly", "cheerful"),
    "thing": (
        "red kite", "blue hat", "golden key", "little drum", "round stone", "warm scarf",
        "silver bell", "old map", "wooden boat", "favorite ball",
    ),
    "where": (
        "under the bed", "behind the trees", "in the tall grass", "near the water",
        "along the path",
    ),
    "where2": ("under the leaves", "behind the fence", "on top of the hill", "inside the cave"),
    "where3": (
        "under a bush", "near the old bridge", "beside a stone wall", "at the end of the path",
        "next to the well",
    ),
    "nothing": ("dust", "stones", "dry leaves", "an empty nest", "mud"),
    "friend": (
        "a little girl", "an old gardener", "a kind farmer", "a young sailor", "a tall miller",
        "a boy with a lamp", "a wise old woman", "a cheerful baker",
    ),
    "the_friend": (
        "the little girl", "the old gardener", "the kind farmer", "the young sailor",
        "the tall miller", "the boy with a lamp", "the wise old woman", "the cheerful baker",
    ),
    "friend2": ("Everyone", "A proud king", "An old man"),
    "weather": ("a big storm", "heavy snow", "a thick fog", "a cold rain", "a strong wind"),
    "land": ("forest", "valley", "meadow", "village", "hills"),
    "hiding": (
        "under a rock", "in a hollow tree", "in a small cave", "behind a wall", "in a barn",
    ),
    "food": (
        "sweet berries", "fresh bread", "a ripe apple", "some nuts", "warm soup", "a bowl of rice",
        "a piece of cake",
    ),
    "way": (
        "over the hill", "along the river", "through the woods", "down to the beach",
        "across the field",
    ),
    "wish": (
        "swim across the lake", "climb the highest mountain", "write a song",
        "sail around the world", "paint the sunset", "bake a cake",
    ),
    "gift": (
        "a paper star", "a ring of flowers", "a soft blanket", "a small flute", "a jar of honey",
    ),
    "sad": ("sad", "afraid", "alone", "lost"),
    "lesson": (
        "friends are a treasure", "it is good to share", "you should never give up",
        "home is the best place", "kind words help everyone",
    ),
}  # fmt: skip

SENTENCES = tuple(
    symbol
    for symbol, rule in RULES.items()
    if symbol not in ("story", "plot") and all(text[-1] in '."' or text[-1] == "?" for text in rule)
)

_PARTS: Mapping[str, tuple[list[str], ...]] = {
    symbol: tuple(re.split(r"\{(\w+)\}", text) for text in rule) for symbol, rule in RULES.items()
}  # odd places are symbols, even places are literal text


def write(random_: random.Random, animal: str) -> str:
    """A random story on `animal`."""
    return _write("story", random_, {"animal": animal})


def is_story(text: str, animal: str) -> bool:
    """Whether the whole of `text` is a story on `animal`, with all its bindings consistent."""
    return any(end == len(text) for end, _ in _match("story", text, 0, {"animal": animal}))


def is_sentence(text: str, animal: str, name: str | None = None) -> bool:
    """Whether `text` is a sentence of stories on `animal`; called `name`, if that is given."""
    bound = {"animal": animal} if name is None else {"animal": animal, "name": name}
    return any(
        end == len(text) for symbol in SENTENCES for end, _ in _match(symbol, text, 0, bound)
    )


def sentences(text: str) -> list[str]:
    """`text` cut after each full stop or question mark that a capital or a quote follows."""
    return re.split(r'(?<=[.?"]) (?=[A-Z"])', text)


def name_in(text: str) -> str | None:
    """The first proper name of the word lists in `text`."""
    known = {*HE_NAMES, *SHE_NAMES}
    return next((word for word in re.findall(r"[A-Z]\w+", text) if word in known), None)


def animals_in(text: str) -> set[str]:
    """The animals of the word lists that `text` mentions."""
    return set(re.findall(r"\w+", text)) & {*ANIMALS, *RARE_ANIMALS}


def with_article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _write(symbol: str, random_: random.Random, bound: Bindings) -> str:
    fixed = _fixed(symbol, bound)
    if fixed is None:
        parts = random_.choice(_PARTS[symbol])
        fixed = "".join(
            _write(part, random_, bound) if place % 2 else part for place, part in enumerate(parts)
        )
        if symbol in BOUND:
            bound[symbol] = fixed
    return fixed


def _match(symbol: str, text: str, at: int, bound: Bindings) -> Iterator[tuple[int, Bindings]]:
    fixed = _fixed(symbol, bound)
    if fixed is not None:
        if text.startswith(fixed, at):
            yield at + len(fixed), bound
        return
    for parts in _PARTS[symbol]:
        for end, after in _match_parts(parts, 0, text, at, bound):
            yield end, {**after, symbol: text[at:end]} if symbol in BOUND else after


def _match_parts(
    parts: list[str], place: int, text: str, at: int, bound: Bindings
) -> Iterator[tuple[int, Bindings]]:
    if place == len(parts):
        yield at, bound
    elif place % 2:
        for end, after in _match(parts[place], text, at, bound):
            yield from _match_parts(parts, place + 1, text, end, after)
    elif text.startswith(parts[place], at):
        yield from _match_parts(parts, place + 1, text, at + len(parts[place]), bound)


def _fixed(symbol: str, bound: Bindings) -> str | None:
    """The text that `symbol` must have here, where earlier choices settle it."""
    if symbol in _PRONOUNS and "name" in bound:
        return _PRONOUNS[symbol][bound["name"] in SHE_NAMES]
    if symbol == "the_friend" and "friend" in bound:
        return "the " + bound["friend"].split(" ", 1)[1]
    return bound.get(symbol)
