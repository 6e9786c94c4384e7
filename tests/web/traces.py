"""What Python's run wing does, as traces that the package for browsers replays; see replay.mjs."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from sterna.base.artifact import Manifest, Param, Phase
from sterna.base.dtype import dtype
from sterna.base.errors import ArtifactError, RequestError
from sterna.base.sizes import evaluate
from sterna.engine.options import SamplingOptions
from sterna.engine.pages import Pages
from sterna.engine.sampler import History, Wanted, orders, sample_input, told
from sterna.runtime.batch import choose, prepare
from sterna.runtime.executable import StepInput
from sterna.runtime.memory import io_bytes, pack, packed_shape
from sterna.runtime.philox import draw_bits
from sterna.runtime.sampling import NONE, sample_rows
from sterna.runtime.work_groups import GroupExecutable, Limits
from sterna.web_folder import alone

Json = Any
HOSTILE_SIZES = (
    "", "n +", "n ** 2", "-n", "n / 2", "n.x", "f(n)", "min()", "max(n", "1 2", "n)", "n // 0",
    "n % (n - n)", "z", "constructor", "True", "1.5", "'a'", "n if n else 1", "[n]", "n; n",
)  # fmt: skip


def sizes(random: Random) -> list[Json]:
    """[text, dims, value or None where it is refused]."""

    def expression(depth: int) -> str:
        if depth == 0 or random.random() < 0.2:
            return random.choice(["n", "b", "p", str(random.randrange(100))])
        if random.random() < 0.2:
            parts = ", ".join(expression(depth - 1) for _ in range(random.randint(1, 3)))
            return f"{random.choice(['min', 'max'])}({parts})"
        op = random.choice(["+", "-", "*", "//", "%"])
        text = f"{expression(depth - 1)} {op} {expression(depth - 1)}"
        return f"({text})" if random.random() < 0.6 else text

    texts = [*HOSTILE_SIZES, *(expression(random.randint(0, 4)) for _ in range(300))]
    return [[text, dims, _size(text, dims)] for text in texts for dims in [_dims(random)]]


def _dims(random: Random) -> dict[str, int]:
    return {"n": random.randrange(2000), "b": random.randrange(9), "p": random.randrange(99)}


def _size(text: str, dims: dict[str, int]) -> int | None:
    try:
        return evaluate(text, dims)
    except ArtifactError:
        return None


def draws(random: Random) -> list[Json]:
    """[seed, stream, position, bits], the large ones as text."""
    keys = [(random.getrandbits(64), random.getrandbits(32), random.getrandbits(40))] * 3
    keys += [(random.getrandbits(64), 0, random.randrange(5000)) for _ in range(50)]
    return [[str(s), stream, p, str(draw_bits(s, stream, p))] for s, stream, p in keys]


def pages(random: Random) -> list[Json]:
    """Operations on an allocator, with what they gave and what was left: [name, argument, ...]."""
    allocator, held = Pages(12), list[list[int]]()
    kept: list[int] = []
    trace: list[Json] = []
    for _ in range(400):
        op = random.choice(["allocate", "fork", "free", "keep", "drop"])
        given: Json = None
        result: Json = None
        if op == "allocate":
            given = random.randint(0, allocator.available)
            result = allocator.allocate(given)
            held.append(result)
        elif op == "fork" and held:
            given = random.choice(held)
            held.append(allocator.fork(given))
        elif op == "free" and held:
            given = held.pop(random.randrange(len(held)))
            allocator.free(given)
        elif op == "keep" and (own := [p for table in held for p in table if p not in kept]):
            given = random.choice(own)
            allocator.keep(given)
            kept.append(given)
        elif op == "drop" and kept:
            given = kept.pop(random.randrange(len(kept)))
            allocator.drop(given)
        else:
            continue
        trace.append([op, given, result, allocator.available, allocator.idle])
    return trace


def batches(random: Random, manifest: Manifest, num_pages: int) -> list[Json]:
    """Steps, good and bad: the batch, and what it became or None where it is refused."""
    return [_batch(random, manifest, num_pages) for _ in range(300)]


def _batch(random: Random, manifest: Manifest, num_pages: int) -> Json:
    size = manifest.kv_cache.page_size
    lengths = [random.choice([1, 1, 3, 31, 32, 33, 70]) for _ in range(random.randint(1, 2))]
    starts = [random.randrange(100) for _ in lengths]
    counts = [-(-(s + n) // size) for s, n in zip(starts, lengths, strict=True)]
    table = [random.randrange(num_pages) for _ in range(sum(counts))]
    total = sum(lengths)
    rows = sorted(random.sample(range(total), random.randint(1, min(3, total))))
    fields: dict[str, list[int]] = {
        "tokens": [random.randrange(manifest.model.vocab_size) for _ in range(total)],
        "positions": [s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)],
        "seq_indptr": np.cumsum([0, *lengths]).tolist(),
        "page_indptr": np.cumsum([0, *counts]).tolist(),
        "page_table": table,
        "logit_rows": rows,
    }
    if random.random() < 0.4:  # make one thing wrong
        values = fields[random.choice(list(fields))]
        at = random.randrange(len(values))
        values[at] += random.choice([-1, 1, 10**6, -(10**6)])
    batch = StepInput(**{name: np.array(v, np.int32) for name, v in fields.items()})
    try:
        prepared = prepare(batch, manifest, num_pages)
        entry = choose({e.name: e for e in manifest.entries}, prepared.dims).name
    except RequestError:
        return [fields, None]
    inputs = {name: array.tolist() for name, array in prepared.inputs.items()}
    return [fields, {"inputs": inputs, "dims": prepared.dims, "entry": entry}]


def samples(random: Random) -> list[Json]:
    """A row of logits, a request's options and history, and the token that Python chooses."""
    return [_sample(random, i) for i in range(200)]


def _sample(random: Random, i: int) -> Json:
    numbers = np.random.default_rng(i)
    vocab_size = random.choice([17, 64, 200])
    vocabulary = vocab_size - random.choice([0, 0, 3])
    logits = numbers.normal(0, random.choice([0.1, 2, 30]), vocab_size).astype(np.float32)
    if random.random() < 0.3:
        logits = np.round(logits)  # many are equal
    if random.random() < 0.05:
        logits[random.randrange(vocabulary)] = random.choice([np.nan, np.inf])
    tokens = numbers.integers(0, vocab_size, random.randint(1, 30)).tolist()
    fields: dict[str, Any] = {
        "temperature": random.choice([0.0, 0.3, 1.0, 1.7, 1e-31]),
        "top_p": random.choice([1.0, 0.9, 0.5, 0.0, 0.99999]),
        "top_k": random.choice([0, 0, 1, 5, 1000]),
        "min_p": random.choice([0.0, 0.0, 0.05, 1.0]),
        "repetition_penalty": random.choice([1.0, 1.0, 1.3, 0.7]),
        "presence_penalty": random.choice([0.0, 0.5, -1.0]),
        "frequency_penalty": random.choice([0.0, 0.3]),
        "logit_bias": {str(random.randrange(vocabulary)): random.uniform(-9, 9) for _ in range(2)},
        "seed": random.getrandbits(64),
        "logprobs": True,
        "top_logprobs": 4,
    }
    allowed = None
    if random.random() < 0.3:
        allowed = numbers.random(vocab_size) < 0.4
        allowed[random.randrange(vocabulary)] = True
    history = History(tokens, random.randint(0, len(tokens)), fields["seed"])
    options = SamplingOptions(**fields)
    wanted = Wanted(0, orders(options), history, (), allowed)
    given = sample_input([wanted], vocabulary, vocab_size)
    (token,) = sample_rows(logits[None], given).tolist()
    sure = token != NONE and bool(np.isfinite(logits).all())
    row = told(wanted, token, logits[:vocabulary]) if sure else None
    return {
        "logits": [repr(float(x)) for x in logits],
        "vocabulary": vocabulary,
        "history": {"tokens": tokens, "promptLength": history.prompt_length},
        "options": fields | {"seed": str(fields["seed"])},
        "allowed": None if allowed is None else np.flatnonzero(allowed).tolist(),
        "edits": [given.edit_ids.tolist(), given.edits.reshape(-1).tolist()],
        "limits": given.limits[0].tolist(),
        "token": token,
        "logprobs": None if row is None else [row.logprob, row.top],
    }


def packs(random: Random) -> list[Json]:
    """Weights as they lie in a file and in memory, as hex."""
    found = []
    for kind in ("u32", "f16", "f32", "u8", "i8"):
        for shape, tile in (((5, 3), 0), ((7, 4), 4), ((8, 2), 8), ((3, 5), 32), ((6,), 4)):
            size = int(np.prod(shape)) * dtype(kind).bytes
            data = np.frombuffer(random.randbytes(size), np.uint8)
            source = data.view(dtype(kind).numpy).reshape(shape)
            param = Param(name="w", dtype=kind, shape=shape, row_tile=tile)
            out = np.zeros(packed_shape(param), source.dtype)
            pack(source, param, out)
            found.append([kind, shape, tile, data.tobytes().hex(), out.tobytes().hex()])
    return found


class Recorder:
    """A Device that runs nothing and notes every launch."""

    name = "a recorder"
    limits = Limits(None, 2**40, 2**20, 2**20, 100)

    def __init__(self) -> None:
        self.launches: list[Json] = []

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, str]:
        return {phase.symbol: phase.symbol for phase in phases}

    def allocate(self, size: int) -> list[int]:
        return [size]  # every list is another one: `GroupExecutable` knows their names

    def view(self, buffer: list[int], offset: int, size: int) -> str:
        return f"arena {offset} {size}"

    def write(self, buffer: Any, data: Any, offset: int = 0) -> None:
        pass

    def read(self, buffer: Any, out: Any, offset: int = 0) -> None:
        pass

    def copy(self, buffer: Any, source: int, destination: int, size: int) -> None:
        pass

    def prepare(
        self, function: str, phase: Phase, buffers: Sequence[Any], dims: Sequence[str]
    ) -> Any:
        return function, buffers

    def run(self, launches: Sequence[tuple[Any, int, Sequence[int]]]) -> None:
        self.launches = list(launches)

    def close(self) -> None:
        pass


def fields(batch: StepInput) -> dict[str, list[int]]:
    """A batch as JSON has it."""
    names = ("tokens", "positions", "seq_indptr", "page_indptr", "page_table", "logit_rows")
    return {name: getattr(batch, name).tolist() for name in names}


def choices(executable: GroupExecutable, device: Recorder, batch: StepInput) -> Json:
    """The launches that choose the tokens of a step: [dims, launches]."""
    model = executable.manifest.model
    executable.run(batch)
    found = []
    for temperature, bias in ((0, {}), (0, {"3": 1.0, "5": -2.0}), (0.7, {}), (1.5, {"3": 1.0})):
        options = orders(SamplingOptions(temperature=temperature, logit_bias=bias))
        wanted = [Wanted(i, options, History([1], 1, 0)) for i in range(len(batch.logit_rows))]
        given = sample_input(wanted, model.vocab_size - 1, model.vocab_size)
        executable.sample(given)
        dims = {"r": len(given.rows), "e": len(given.edit_ids), "v": given.vocabulary}
        dims["d"] = int(temperature > 0)
        found.append([dims, _named(executable, device)])
    return found


def launches(executable: GroupExecutable, device: Recorder, batch: StepInput) -> Json:
    """The launches of a step: [symbol, buffers, groups, sizes]."""
    executable.step(batch)
    return _named(executable, device)


def _named(executable: GroupExecutable, device: Recorder) -> Json:
    names = {id(handle): name for name, handle in executable._fixed.items()}
    return [
        [symbol, [b if isinstance(b, str) else names[id(b)] for b in buffers], groups, [*values]]
        for (symbol, buffers), groups, values in device.launches
    ]


def tiles(manifest: Manifest) -> Json:
    """How many tokens kernels of each entry point take together."""
    return [[entry.name, entry.tile] for entry in manifest.entries]


def memory(manifest: Manifest) -> Json:
    """What a browser takes of inputs and outputs, and where the sampler keeps what it needs."""
    own = alone(manifest)
    assert own.sampler is not None
    arena = [buffer.offset for buffer in own.sampler.arena]
    return [io_bytes(own.launched), arena, own.sampler.arena_bytes]
