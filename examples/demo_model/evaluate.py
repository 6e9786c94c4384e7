"""Measure the demo model: held-out sums, stories, questions, in full and at fewer bits.

In: the committed folder. Out: a JSON file of figures, which the model's card quotes. Sums are all
that training never saw; stories are read back by the grammar that wrote the corpus, once for
animals of the training list and once for animals that never occurred; questions on Sterna are
phrasings that training never saw; tools are drawn as training draws them.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from examples.demo_model import answers, corpus, grammar, sums, tokenizer, tools
from examples.demo_model.generate import say
from examples.demo_model.model import Llama, load_weights, quantized
from examples.demo_model.words import ANIMALS, RARE_ANIMALS
from tokenizers import Tokenizer

STORIES = 200
SAMPLING = 0.3  # the temperature of generation_config.json
LONGEST = 200


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a network and its tokenizer."""

    model: Llama
    text: Tokenizer

    def says(self, questions: Sequence[str], limit: int, temperature: float = 0.0) -> list[str]:
        """The answers to `questions`."""
        prompts = [corpus.prompt(question) for question in questions]
        return say(self.model, self.text, prompts, limit, temperature)


def load(folder: Path, bits: int | None) -> Subject:
    """The model of `folder`, its matrices as `bits` bits hold them if given."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Llama(config)
    weights = load_weights(folder / "model.safetensors")
    if bits is not None:
        weights = {n: quantized(w, bits) if w.ndim == 2 else w for n, w in weights.items()}
    model.load_state_dict(weights)
    return Subject(model.eval(), tokenizer.load(folder))


def measure_sums(subject: Subject, random_: random.Random, temperature: float) -> dict[str, float]:
    """The share of right answers to every held-out sum, each asked in one random phrasing."""
    asked = sums.all_held_out()
    said = subject.says([random_.choice(sums.phrasings(s)) for s in asked], 16, temperature)
    right = [answer == s.answer for answer, s in zip(said, asked, strict=True)]
    kinds = {
        "addition": [s.sign == "+" for s in asked],
        "subtraction": [s.sign == "-" and s.a >= s.b for s in asked],
        "subtraction_below_zero": [s.sign == "-" and s.a < s.b for s in asked],
    }
    by_kind = {kind: _share([r for r, m in zip(right, of) if m]) for kind, of in kinds.items()}
    return {"count": len(asked), "right": _share(right), **by_kind}


def measure_stories(
    subject: Subject, random_: random.Random, animals: Sequence[str]
) -> dict[str, float]:
    """How `STORIES` stories, sampled as a chat samples them, fare with the grammar's recogniser."""
    asked = [random_.choice(animals) for _ in range(STORIES)]
    questions = [corpus.ask_story(random_, animal) for animal in asked]
    told = list(zip(subject.says(questions, LONGEST, SAMPLING), asked, strict=True))
    cut = [(x, a, grammar.name_in(s) or "") for s, a in told for x in grammar.sentences(s)]
    return {
        "count": STORIES,
        "sentences_grammatical": _share([grammar.is_sentence(x, a) for x, a, _ in cut]),
        "sentences_with_the_same_hero": _share([grammar.is_sentence(*each) for each in cut]),
        "stories_grammatical_and_consistent": _share([grammar.is_story(s, a) for s, a in told]),
        "on_the_animal_asked_for": _share([a in s.replace(".", " ").split() for s, a in told]),
        "no_other_animal": _share([grammar.animals_in(s) <= {a} for s, a in told]),
        "different_stories": len({s for s, _ in told}) / STORIES,
    }


def measure_questions(subject: Subject) -> dict[str, float]:
    """The share of known and of held-out phrasings whose answer is word for word the right one."""

    def share(chosen: slice) -> float:
        asked = [(q, t) for t in answers.TOPICS_ON_STERNA for q in t.questions[chosen]]
        said = subject.says([question for question, _ in asked], LONGEST)
        return _share([a == topic.answer for a, (_, topic) in zip(said, asked, strict=True)])

    return {
        "known_phrasings": share(slice(answers.HELD_OUT, None)),
        "held_out_phrasings": share(slice(0, answers.HELD_OUT)),
    }


def measure_unknown(subject: Subject, random_: random.Random) -> dict[str, float]:
    """The share of questions out of reach that get the honest answer."""
    strange = [answers.unknown(random_) for _ in range(STORIES)]
    too_hard = [answers.out_of_range(random_) for _ in range(STORIES)]
    return {
        "unknown": _share([a == answers.UNKNOWN for a in subject.says(strange, LONGEST)]),
        "too_hard": _share([a == answers.OUT_OF_RANGE for a in subject.says(too_hard, LONGEST)]),
    }


def measure_chat(subject: Subject, random_: random.Random) -> dict[str, float]:
    """The share of right held-out sums in the middle of a chat, after one to six exchanges."""
    asked = sums.all_held_out()[::20]
    questions = []
    for sum_ in asked:
        turns = [corpus.turn(random_) for _ in range(random_.randint(1, 6))]
        before = "".join(corpus.exchange(turn) for turn in turns)
        question = before.removeprefix(corpus.USER) + corpus.USER + sums.phrasings(sum_)[0]
        questions.append(question)
    said = subject.says(questions, 16)
    return {"right": _share([a == s.answer for a, s in zip(said, asked, strict=True)])}


def measure_tools(subject: Subject, random_: random.Random) -> dict[str, float]:
    """The share of right calls with one to three tools on offer, and of sums done without one.

    A call is right when its name and all of its arguments are; nothing constrains the model here.
    """
    offers = [[tools.tool(random_) for _ in range(1 + i % 3)] for i in range(STORIES)]
    uses = [tools.use(random_, random_.choice(offer)) for offer in offers]
    asked = random_.sample(sums.all_held_out(), STORIES)
    systems = [tools.offer(offer) for offer in offers]
    for_tools = [corpus.prompt(u.ask, system) for u, system in zip(uses, systems, strict=True)]
    for_none = [
        corpus.prompt(sums.phrasings(s)[0], system)
        for s, system in zip(asked, systems, strict=True)
    ]
    called = say(subject.model, subject.text, for_tools, LONGEST)
    answered = say(subject.model, subject.text, for_none, LONGEST)
    right = [said == u.call for said, u in zip(called, uses, strict=True)]
    latin = [u.call.isascii() for u in uses]
    return {
        "count": STORIES,
        "calls": _share(right),
        "calls_in_ascii": _share([r for r, ascii_ in zip(right, latin, strict=True) if ascii_]),
        "sums_without_a_call": _share(
            [a == s.answer for a, s in zip(answered, asked, strict=True)]
        ),
    }


def measure(folder: Path, bits: int | None, seed: int) -> dict[str, object]:
    """All figures of the model in `folder`."""
    torch.manual_seed(seed)
    subject, random_ = load(folder, bits), random.Random(seed)
    return {
        "sums_held_out": measure_sums(subject, random_, 0.0),
        "sums_held_out_sampled": measure_sums(subject, random_, SAMPLING),
        "sums_within_a_chat": measure_chat(subject, random_),
        "stories": measure_stories(subject, random_, ANIMALS),
        "stories_on_animals_never_seen": measure_stories(subject, random_, RARE_ANIMALS),
        "questions": measure_questions(subject),
        "tools": measure_tools(subject, random_),
        "out_of_reach": measure_unknown(subject, random_),
    }


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right), 4)


def main() -> None:
    """Measure in float16, at 4 bits and at 3, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=tokenizer.FOLDER)
    parser.add_argument("--output", type=Path, default=tokenizer.FOLDER / "figures.json")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = {}
    for name, bits in (("float16", None), ("4 bits", 4), ("3 bits", 3)):
        figures[name] = measure(args.model, bits, args.seed)
        print(name, json.dumps(figures[name], indent=2), flush=True)
    tokenizer.write_json(args.output, figures)


if __name__ == "__main__":
    main()
