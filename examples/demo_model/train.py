"""Train the demo model on the CPU and write its Hugging Face folder.

In: the corpus and the tokenizer. Out: `config.json`, `generation_config.json` and
`model.safetensors` (float16). Every training row is one long conversation, so each answer is learnt
at every depth of a chat; the loss counts the tokens of the answers only. In the last part of
training, most steps see the weights as 3 or 4 bits would store them (straight-through estimator,
Bengio et al., 2013), so that the model still works when it is quantized.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from examples.demo_model import corpus, grammar, sums, tokenizer, tools
from examples.demo_model.generate import say
from examples.demo_model.model import CONFIG, Llama, load_weights, quantized, save_weights
from examples.demo_model.muon import Muon
from examples.demo_model.sums import Sum
from examples.demo_model.words import ANIMALS
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

IGNORE = -100
BATCH = 4096  # tokens
ROW_LENGTHS = (128, 256, 256, 512, 1024)
GENERATION = {
    "temperature": 0.3,
    "top_p": 0.9,
    "do_sample": True,
    "max_new_tokens": 256,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the optimizer, from warm-up to a rate of zero; shares are of its steps."""

    steps: int
    mixture: corpus.Mixture
    rate: float = 2e-3
    sums_first: float = 0.0
    quantized: float = 0.35
    decay: float = 0.5
    tools: float = 0.0  # the share of rows in which tools are offered
    seed: int = 1


SUMS = corpus.Mixture(sums=100)
CHAT = corpus.Mixture(sums=40, stories=35, topics=20, unknown=5, made_up=0.3)
STAGES = (
    Stage(1900, corpus.Mixture(), sums_first=0.2),
    Stage(900, CHAT, quantized=0.5, decay=0.9, seed=2),
    Stage(900, CHAT, rate=1.5e-3, quantized=0.5, decay=0.9, seed=3),
    Stage(2600, CHAT, rate=1.5e-3, quantized=0.45, decay=0.8, tools=0.4, seed=4),
)


class Rows:
    """Makes batches of token ids with their targets."""

    def __init__(self, text: Tokenizer, seed: int) -> None:
        self.random = random.Random(seed)
        self.text = text
        self.mixture = SUMS
        self.tools = 0.0
        self.special = {name: text.token_to_id(name) for name in tokenizer.SPECIAL}

    def batch(self, length: int) -> tuple[Tensor, Tensor]:
        """Ids and targets, both `(rows, length)`; targets are `IGNORE` outside answers."""
        rows = [self.row(length) for _ in range(BATCH // length)]
        ids = torch.tensor([ids for ids, _ in rows])
        counted = torch.tensor([counted for _, counted in rows])
        return ids[:, :-1], ids[:, 1:].masked_fill(~counted[:, 1:], IGNORE)

    def row(self, length: int) -> tuple[list[int], list[bool]]:
        """`length + 1` ids of one conversation, and which of them the loss counts."""
        ids, counted = [self.special[corpus.BOS]], [False]

        def add(words: str, learn: bool, role: str | None = None) -> None:
            opening = [self.special[role]] if role else []
            spoken = self.text.encode(words, add_special_tokens=False).ids
            ids.extend([*opening, *spoken, self.special[corpus.END]])
            counted.extend([False] * len(opening) + [learn] * (len(spoken) + 1))

        offered = self.offer()
        if offered:
            add(tools.offer(offered), False, corpus.SYSTEM)
        elif self.random.random() < 0.03 and self.mixture is not SUMS:
            # a plain text, for raw completion
            add(grammar.write(self.random, self.random.choice(ANIMALS)), True)
        elif (system := corpus.system_message(self.random)) is not None:
            add(system, False, corpus.SYSTEM)
        while len(ids) <= length:
            for user, assistant in self.exchanges(offered):
                add(user, False, corpus.USER)
                add(assistant, True, corpus.ASSISTANT)
        return ids[: length + 1], counted[: length + 1]

    def offer(self) -> list[tools.Tool]:
        """The tools of a row, of which many have none."""
        if self.random.random() >= self.tools:
            return []
        return [tools.tool(self.random) for _ in range(self.random.choice((1, 1, 2, 3)))]

    def exchanges(self, offered: list[tools.Tool]) -> list[tuple[str, str]]:
        """A question and its answer; before the answer, the call of a tool that it takes."""
        if offered and self.random.random() < 0.7:
            use = tools.use(self.random, self.random.choice(offered))
            return [(use.ask, use.call), (tools.returned(use.result), tools.told(use.result))]
        if self.tools and self.random.random() < 0.1:
            turn = tools.json_turn(self.random)
        else:
            turn = corpus.turn(self.random, self.mixture)
        return [(turn.user, turn.assistant)]


def loss_of(model: Llama, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the answers' tokens."""
    where = targets != IGNORE
    return functional.cross_entropy(model(ids, where), targets[where])


@contextmanager
def stored_in(model: Llama, bits: int | None) -> Iterator[None]:
    """Let the matrices be what `bits` bits hold of them, while their loss is taken."""
    matrices = [] if bits is None else [w for w in model.parameters() if w.ndim == 2]
    exact = [w.data for w in matrices]
    for matrix in matrices:
        matrix.data = quantized(matrix.data, bits or 0)
    try:
        yield
    finally:
        for matrix, data in zip(matrices, exact, strict=True):
            matrix.data = data


def optimizers(model: Llama, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    inner = [w for n, w in model.named_parameters() if w.ndim == 2 and "embed" not in n]
    outer = [w for n, w in model.named_parameters() if w.ndim == 1 or "embed" in n]
    return [
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        Muon(inner, lr=10 * rate),
    ]


def initialize(model: Llama) -> None:
    """Normal weights of deviation 0.05; projections onto the residual start smaller."""
    layers = CONFIG["num_hidden_layers"]
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            onto_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=0.05 / math.sqrt(2 * layers) if onto_residual else 0.05)


def scale_at(step: int, stage: Stage) -> float:
    """Learning rate at `step` as a share of the highest: warm-up, plateau, linear decay."""
    return min(1.0, (step + 1) / 50, (stage.steps - step) / (stage.decay * stage.steps))


def sums_right(model: Llama, text: Tokenizer, asked: Sequence[Sum]) -> float:
    """The share of `asked` that the model answers right, greedily."""
    said = say(model, text, [corpus.prompt(sums.phrasings(s)[0]) for s in asked], limit=16)
    return sum(a == s.answer for a, s in zip(said, asked, strict=True)) / len(asked)


def train(model: Llama, stage: Stage) -> None:
    """Change `model` by one stage of training."""
    torch.manual_seed(stage.seed)
    rows = Rows(tokenizer.load(), stage.seed)
    rows.tools = stage.tools
    tuned = optimizers(model, stage.rate)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in tuned]
    watched = sums.all_held_out()[::10]
    started, seen = time.monotonic(), 0
    for step in range(stage.steps):
        only_sums = step < stage.sums_first * stage.steps
        rows.mixture = SUMS if only_sums else stage.mixture
        late = step > (1 - stage.quantized) * stage.steps
        bits = rows.random.choice((None, 3, 4, 4)) if late else None
        ids, targets = rows.batch(rows.random.choice(ROW_LENGTHS[: 2 if only_sums else None]))
        for optimizer in tuned:
            optimizer.zero_grad()
        with stored_in(model, bits):
            loss = loss_of(model, ids, targets)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rates in zip(tuned, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale_at(step, stage)
            optimizer.step()
        seen += ids.numel()
        if step % 100 == 0 or step == stage.steps - 1:
            speed = seen / (time.monotonic() - started)
            right = sums_right(model, rows.text, watched)
            print(
                f"{step=} {bits=} loss {loss.item():.4f} sums {right:.3f} {speed=:.0f}", flush=True
            )


def write(model: Llama, folder: Path) -> None:
    """Write the network's three files beside the tokenizer's."""
    text = tokenizer.load()
    special = {
        "bos_token_id": text.token_to_id(corpus.BOS),
        "eos_token_id": text.token_to_id(corpus.END),
        "pad_token_id": text.token_to_id(corpus.END),
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.write_json(folder / "config.json", {**CONFIG, **special})
    tokenizer.write_json(folder / "generation_config.json", {**GENERATION, **special})
    save_weights(folder / "model.safetensors", dict(model.named_parameters()))


def main() -> None:
    """Train in stages; each ends with a folder that works, and begins from what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from-stage", type=int, choices=range(1, len(STAGES) + 1), default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=tokenizer.FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for number, stage in enumerate(STAGES, start=1):
        if number < args.from_stage:
            continue
        model = Llama()
        if number == 1:
            torch.manual_seed(stage.seed)
            initialize(model)
        else:
            model.load_state_dict(load_weights(args.output / "model.safetensors"))
        train(model, stage)
        write(model, args.output)


if __name__ == "__main__":
    main()
