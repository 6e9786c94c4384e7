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
from pathlib import Path

import torch
from examples.demo_model import corpus, grammar, sums, tokenizer
from examples.demo_model.generate import say
from examples.demo_model.model import CONFIG, Llama, quantized, save_weights
from examples.demo_model.muon import Muon
from examples.demo_model.sums import Sum
from examples.demo_model.words import ANIMALS
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

IGNORE = -100
ROW_LENGTHS = (128, 256, 256, 512, 1024)
GENERATION = {
    "temperature": 0.3,
    "top_p": 0.9,
    "do_sample": True,
    "max_new_tokens": 256,
}


class Rows:
    """Makes batches of token ids with their targets."""

    def __init__(self, text: Tokenizer, seed: int, tokens_a_batch: int) -> None:
        self.random = random.Random(seed)
        self.text = text
        self.tokens = tokens_a_batch
        self.sums_share = 1.0
        self.special = {name: text.token_to_id(name) for name in tokenizer.SPECIAL}

    def batch(self, length: int) -> tuple[Tensor, Tensor]:
        """Ids and targets, both `(rows, length)`; targets are `IGNORE` outside answers."""
        rows = [self.row(length) for _ in range(self.tokens // length)]
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

        if self.random.random() < 0.03 and self.sums_share < 1:  # a plain text, for raw completion
            add(grammar.write(self.random, self.random.choice(ANIMALS)), True)
        elif (system := corpus.system_message(self.random)) is not None:
            add(system, False, corpus.SYSTEM)
        while len(ids) <= length:
            turn = corpus.turn(self.random, self.sums_share)
            add(turn.user, False, corpus.USER)
            add(turn.assistant, True, corpus.ASSISTANT)
        return ids[: length + 1], counted[: length + 1]


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


def scale_at(step: int, steps: int) -> float:
    """Learning rate at `step` as a share of the highest: warm-up, plateau, linear decay."""
    return min(1.0, (step + 1) / 50, (steps - step) / (0.5 * steps))


def sums_right(model: Llama, text: Tokenizer, asked: Sequence[Sum]) -> float:
    """The share of `asked` that the model answers right, greedily."""
    said = say(model, text, [sums.phrasings(sum_)[0] for sum_ in asked], limit=16)
    return sum(a == s.answer for a, s in zip(said, asked, strict=True)) / len(asked)


def train(args: argparse.Namespace) -> Llama:
    """The trained model."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rows = Rows(tokenizer.load(), args.seed, args.tokens)
    model = Llama()
    initialize(model)
    tuned = optimizers(model, args.rate)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in tuned]
    watched = sums.all_held_out()[::10]
    started, seen = time.monotonic(), 0
    for step in range(args.steps):
        rows.sums_share = 1.0 if step < args.sums_first * args.steps else 0.7
        lengths = ROW_LENGTHS[:2] if rows.sums_share == 1 else ROW_LENGTHS
        late = step > (1 - args.quantized_share) * args.steps
        bits = rows.random.choice((None, 3, 4, 4)) if late else None
        ids, targets = rows.batch(rows.random.choice(lengths))
        for optimizer in tuned:
            optimizer.zero_grad()
        with stored_in(model, bits):
            loss = loss_of(model, ids, targets)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rates in zip(tuned, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale_at(step, args.steps)
            optimizer.step()
        seen += ids.numel()
        if step % 100 == 0 or step == args.steps - 1:
            speed = seen / (time.monotonic() - started)
            right = sums_right(model, rows.text, watched)
            print(
                f"{step=} {bits=} loss {loss.item():.4f} sums {right:.3f} {speed=:.0f}", flush=True
            )
        if args.save_every and step % args.save_every == args.save_every - 1:
            write(model, args.output)
    return model


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


def arguments() -> argparse.Namespace:
    """The command line; its defaults made the committed model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a batch")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--sums-first", type=float, default=0.2, help="share of steps on sums only")
    parser.add_argument("--quantized-share", type=float, default=0.35)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--output", type=Path, default=tokenizer.FOLDER)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    write(train(chosen), chosen.output)
