"""Conversations with tools: what is offered, a question, the call that it asks for, the answer.

In: a random generator. Out: the offer as the chat template writes it, and exchanges of which some
are calls. A call's arguments are copied out of the question: a number, a name, what is in quotes.
Questions that no tool is for are answered as ever. Also questions that ask for JSON with certain
keys. It knows nothing of token ids.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from examples.demo_model import corpus
from examples.demo_model.words import COUNTRIES, HE_NAMES, SHE_NAMES, TOPICS

_WORDS = tuple("magic lucky secret super next best fast plain daily local big little".split())
_FUNCTIONS = tuple("function number double square root cube half score rank count code".split())
_FACTS = tuple(
    "weather time price news population temperature forecast traffic capital size age".split()
)
_THINGS = tuple("customer user order note event ticket company song page team book task".split())
_NUMBERS = tuple("input x n number value a amount".split())
_PLACES = tuple("location city place where name query country town".split())
_GET = tuple("get_{} find_{} look_up_{} {} {}_of read_{} current_{}".split())
_MAKE = tuple("create_{} add_{} new_{} make_{} save_{} big_{} {}".split())
_ASK_NUMBER = (
    "What is the value of {f}({n})? Use the tool.", "Use {f} on {n}.", "Call {f} with {n}.",
    "What does {f} give for {n}?", "Run {f}({n}).", "{f}({n})", "What is {f}({n})?",
    "Apply {f} to {n}, please.",
)  # fmt: skip
_ASK_NOTHING = (
    "What is the value of {f}()? Use the tool.", "Use {f}.", "Call {f}.", "Run {f}().", "{f}()",
)  # fmt: skip
_ASK_FACT = (
    "What is the {fact} in {place}?", "What is the {fact} of {place}?", "{fact} in {place}?",
    "Tell me the {fact} in {place}.", "How is the {fact} in {place}?",
    "What's the {fact} in {place} today?", "Can you tell me the {fact} of {place}?",
)  # fmt: skip
_ASK_MAKE = (
    "Create a {thing} named '{s}'.", "Add a {thing} called '{s}'.", 'Make a {thing} "{s}".',
    "Create a {thing} named '{s}' ({t})", "I need a new {thing} named '{s}', please.",
)  # fmt: skip
_KINDS = tuple("small big new old rich kind Chinese Japanese French technology music".split())
_ASK_JSON = (
    "Tell me a {kind} about {subject}. Return the result as a JSON with {keys} keys.",
    "Describe {subject} as JSON with the keys {keys}.", "Give me JSON with {keys} on {subject}.",
    "Write a {kind} about {subject}. Answer in JSON with {keys} keys.",
)  # fmt: skip
_KEYS = tuple(
    "setup punchline title name text answer question first last age color city kind word".split()
)
_SCRIPTS = ((0x4E00, 0x5200), (0x3041, 0x3093), (0x30A1, 0x30F3), (0x410, 0x44F), (0xC0, 0xFF))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: its name, its parameters' names, what it is about, and how it is asked for."""

    name: str
    parameters: tuple[str, ...]
    about: str
    question: "Callable[[random.Random, Tool], Use]"

    @property
    def shown(self) -> str:
        """As the chat template offers it."""
        return f"{self.name}({', '.join(self.parameters)})"


@dataclass(frozen=True, slots=True)
class Use:
    """A question for a tool, the arguments that the question names, and a result."""

    tool: Tool
    ask: str
    values: tuple[object, ...]
    result: str

    @property
    def call(self) -> str:
        """The answer that calls the tool."""
        arguments = dict(zip(self.tool.parameters, self.values, strict=True))
        return f"<call>{self.tool.name} {json.dumps(arguments, ensure_ascii=False)}</call>"


def offer(tools: list[Tool]) -> str:
    """What the chat template makes of the tools on offer, without its marks."""
    return "Tools: " + " ".join(tool.shown for tool in tools)


def returned(result: str) -> str:
    """A tool's result as the chat template writes it, without its marks."""
    return f"<result>{result}</result>"


def told(result: str) -> str:
    """What the model says of a result."""
    return f"It says: {result}"


def tool(random_: random.Random) -> Tool:
    """A tool nobody has."""
    draw = random_.random()
    if draw < 0.3:
        return Tool(_function(random_), (random_.choice(_NUMBERS),), "", _number)
    if draw < 0.4:
        return Tool(_function(random_), (), "", _nothing)
    if draw < 0.7:
        fact = random_.choice(_FACTS)
        name = random_.choice(_GET).format(fact)
        return Tool(name, (random_.choice(_PLACES),), fact, _fact)
    thing = random_.choice(_THINGS)
    names = (random_.choice((f"{thing}_name", "name", "title")), "description")
    name = random_.choice(_MAKE).format(thing)
    return Tool(name, names[: random_.randint(1, 2)], thing, _make)


def use(random_: random.Random, tool: Tool) -> Use:
    """A question that a tool is for."""
    return tool.question(random_, tool)


def json_turn(random_: random.Random) -> corpus.Turn:
    """A question that asks for JSON, and an object with the keys that it names."""
    keys = random_.sample(_KEYS, 3)[: random_.randint(1, 3)]
    if random_.random() < 0.5:
        keys[0] = corpus.made_up_animal(random_)
    quote = random_.choice("''\"")
    subject = random_.choice(TOPICS)
    ask = random_.choice(_ASK_JSON).format(
        kind=random_.choice(("joke", "story", "poem", "note")),
        subject=subject,
        keys=" and ".join(f"{quote}{key}{quote}" for key in keys),
    )
    if random_.random() < 0.5:
        ask += " Return nothing other than JSON."
    return corpus.Turn(ask, json.dumps(dict.fromkeys(keys, subject)))


def _number(random_: random.Random, tool: Tool) -> Use:
    n = random_.randrange(10 ** random_.randint(1, 4))
    ask = random_.choice(_ASK_NUMBER).format(f=tool.name, n=n)
    return Use(tool, ask, (n,), str(random_.randrange(1000)))


def _nothing(random_: random.Random, tool: Tool) -> Use:
    ask = random_.choice(_ASK_NOTHING).format(f=tool.name)
    return Use(tool, ask, (), random_.choice((str(random_.randrange(1000)), "done", "yes")))


def _fact(random_: random.Random, tool: Tool) -> Use:
    place = _place(random_)
    ask = random_.choice(_ASK_FACT).format(fact=tool.about, place=place)
    weather = f"It's {random_.choice(('sunny', 'cloudy', 'cold', corpus.made_up_animal(random_)))}."
    result = random_.choice((weather, f"{random_.randrange(100)} degrees", "I do not know"))
    return Use(tool, ask, (place,), result)


def _make(random_: random.Random, tool: Tool) -> Use:
    name = _name(random_)
    described = f"a {random_.choice(_KINDS)} {random_.choice(_THINGS)}"
    ask = random_.choice(_ASK_MAKE).format(thing=tool.about, s=name, t=_place(random_))
    if len(tool.parameters) > 1:
        ask = f"{ask.rstrip('.')} - {described}"
    values = (name, described)[: len(tool.parameters)]
    return Use(tool, ask, values, f"Created {tool.about}: {name}")


def _function(random_: random.Random) -> str:
    parts = [random_.choice(_WORDS), random_.choice(_FUNCTIONS)]
    if random_.random() < 0.3:
        parts[random_.randrange(2)] = corpus.made_up_animal(random_)
    if random_.random() < 0.15:
        parts += ["no", "args"]
    return "_".join(parts)


def _place(random_: random.Random) -> str:
    words = [_capital_word(random_) for _ in range(random_.choice((1, 1, 2)))]
    if random_.random() < 0.25:
        return random_.choice(COUNTRIES)
    state = "".join(random_.choice("ABCDEGIKLMNOPRSTVWXY") for _ in range(2))
    return " ".join(words) + (f", {state}" if random_.random() < 0.3 else "")


def _name(random_: random.Random) -> str:
    """A name to copy: of a person, made up, or in another script."""
    draw = random_.random()
    if draw < 0.2:
        return random_.choice(HE_NAMES + SHE_NAMES)
    if draw < 0.5:
        return " ".join(_capital_word(random_) for _ in range(random_.choice((1, 2))))
    low, high = random_.choice(_SCRIPTS)
    return "".join(chr(random_.randrange(low, high)) for _ in range(random_.randint(2, 6)))


def _capital_word(random_: random.Random) -> str:
    return corpus.made_up_animal(random_).capitalize()
