"""What llama.cpp's converter did to a tensor, undone.

In: the tensors of a file that make one of a checkpoint's, and its config.json. Out: that tensor,
with its blocks as they are where only rows have moved; where a weight was turned, or is joined of
blocks of different types, it is plain numbers. Which tensor needs what is in the rows of
`gguf_architectures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import MissingTensor, ShapeMismatch
from sterna.convert.stored import Parts, StoredTensor

Config = Mapping[str, Any]
Undo = Callable[[Sequence[StoredTensor], Config], StoredTensor]
Order = Callable[[int, Config], NDArray[Any] | None]


def joined(parts: Sequence[StoredTensor], config: Config) -> StoredTensor:
    """Rows on rows."""
    first, *others = parts
    if not others:
        return first
    if len({part.shape[1:] for part in parts}) > 1:
        raise ShapeMismatch(
            f"{first.path}: rows of {' and '.join(part.name for part in parts)} differ in length"
        )
    alike = len({(part.scheme, part.dtype) for part in parts}) == 1
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])

    def read(start: int, end: int) -> Parts:
        pieces, at = [], 0
        for part in parts:
            low, high = max(start - at, 0), min(end - at, part.shape[0])
            if low < high:
                pieces.append(part.read(low, high) if alike else {"weight": part.values(low, high)})
            at += part.shape[0]
        return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}

    return replace(
        first, shape=shape, read=read, nbytes=sum(part.nbytes for part in parts),
        scheme=first.scheme if alike else None,
    )  # fmt: skip


def moved(order: Order) -> Undo:
    """Rows in another order, or some: `order(rows, config)` says where the checkpoint's lie."""

    def undo(parts: Sequence[StoredTensor], config: Config) -> StoredTensor:
        tensor = joined(parts, config)
        found = order(tensor.shape[0], config)
        if found is None:
            raise ShapeMismatch(
                f"{tensor.path}: {tensor.name} has {tensor.shape[0]} rows, which are not those of "
                "the heads that the metadata gives"
            )

        def read(first: int, last: int) -> Parts:
            whole = tensor.read(0, tensor.shape[0])
            return {key: part[found[first:last]] for key, part in whole.items()}

        return replace(
            tensor,
            shape=(len(found), *tensor.shape[1:]),
            nbytes=tensor.nbytes * len(found) // tensor.shape[0],
            read=read,
            whole=True,
        )

    return undo


def rotated_halves(key: str) -> Undo:
    """Heads, as many as the config's `key`, whose rows lie in pairs that rotate together."""

    def order(rows: int, config: Config) -> NDArray[Any] | None:
        heads = config[key]
        if rows % (2 * heads):
            return None
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    return moved(order)


def _by_group(rows: int, config: Config) -> NDArray[Any] | None:
    """Queries, then keys, then values, as each key head with its query heads and its value head."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % groups or rows % (heads + 2 * groups):
        return None
    at = np.arange(rows).reshape(heads + 2 * groups, -1)
    queries = at[:heads].reshape(groups, -1)
    own = [queries, at[heads : heads + groups], at[heads + groups :]]
    return np.concatenate(own, axis=1).reshape(-1)


grouped_heads = moved(_by_group)


def of_rows(part: int) -> Undo:
    """Queries (0), keys (1) or values (2), out of a matrix of all where the file has one."""

    def undo(parts: Sequence[StoredTensor], config: Config) -> StoredTensor:
        tensor, dim = parts[0], config["head_dim"]
        heads, others = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
        if tensor.shape[0] == (others if part else heads):
            return tensor  # apart already
        if tensor.shape[0] != heads + 2 * others:
            raise ShapeMismatch(
                f"{tensor.path}: {tensor.name} has {tensor.shape[0]} rows, not the {heads} of "
                f"queries and {2 * others} of keys and values that the metadata gives"
            )
        start = (0, heads, heads + others)[part]
        count = others if part else heads
        return replace(
            tensor,
            shape=(count, *tensor.shape[1:]),
            nbytes=tensor.nbytes * count // tensor.shape[0],
            read=lambda first, last: tensor.read(start + first, start + last),
        )

    return undo


def qkvz_sizes(config: Config) -> tuple[int, ...]:
    """Rows of a key head's q and k, and of its value heads' v and z."""
    each = config["linear_num_value_heads"] // config["linear_num_key_heads"]
    key, value = config["linear_key_head_dim"], config["linear_value_head_dim"] * each
    return key, key, value, value


def ba_sizes(config: Config) -> tuple[int, ...]:
    """Rows of the shares and steps of a key head's value heads."""
    each = config["linear_num_value_heads"] // config["linear_num_key_heads"]
    return each, each


def of_key_heads(sizes: Callable[[Config], tuple[int, ...]], *wanted: int) -> Undo:
    """Those parts of a gated delta net's matrix, where it has all parts of each key head in turn.

    A matrix of those parts alone has them one after another already.
    """

    def order(rows: int, config: Config) -> NDArray[Any] | None:
        heads, each = config["linear_num_key_heads"], sizes(config)
        if rows != heads * sum(each):
            return None
        parts = np.split(np.arange(rows).reshape(heads, -1), np.cumsum(each)[:-1], axis=1)
        return np.concatenate([parts[i].reshape(-1) for i in wanted])

    def undo(parts: Sequence[StoredTensor], config: Config) -> StoredTensor:
        each = sizes(config)
        own = config["linear_num_key_heads"] * sum(each[i] for i in wanted)
        apart = len(parts) == 1 and parts[0].shape[0] == own
        return parts[0] if apart else moved(order)(parts, config)

    return undo


def changed(by: Callable[[NDArray[Any]], NDArray[Any]], *shape: int | str) -> Undo:
    """Other numbers in another shape, of plain tensors; words in `shape` are the config's sizes."""

    def undo(parts: Sequence[StoredTensor], config: Config) -> StoredTensor:
        tensor = parts[0]
        wanted = [size if isinstance(size, int) else int(config[size]) for size in shape]
        known = -int(np.prod(wanted, dtype=np.int64)) if -1 in wanted else 0
        count = int(np.prod(tensor.shape, dtype=np.int64))
        if tensor.scheme is not None or (count % known if known else count != np.prod(wanted)):
            raise ShapeMismatch(
                f"{tensor.path}: {tensor.name} must be plain numbers that make {list(shape)}, "
                f"found {list(tensor.shape)}"
            )
        full = tuple(size if size >= 0 else count // known for size in wanted)

        def read(first: int, last: int) -> Parts:
            values = tensor.read(0, tensor.shape[0])["weight"]
            return {"weight": by(values).reshape(full)[first:last]}

        return replace(tensor, shape=full, read=read, whole=True)

    return undo


def shaped(*shape: int | str) -> Undo:
    """The same numbers in another shape."""
    return changed(lambda values: values, *shape)


def _less_one(values: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = values - values.dtype.type(1)
    return found


def _logarithm(values: NDArray[Any]) -> NDArray[Any]:
    """Of decays, which files hold as -exp(A_log). Whatever else is there is refused as NaN is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[Any] = np.log(-values)
    return found


less_one = changed(_less_one, -1)
logarithm = changed(_logarithm, -1)


def turned_rows(parts: Sequence[StoredTensor], config: Config) -> StoredTensor:
    """A weight that checkpoints hold as [in, out] and files as [out, in], which products read."""
    return replace(parts[0], turned=True)


def latent_rows(parts: Sequence[StoredTensor], config: Config) -> StoredTensor:
    """DeepSeek's kv_b_proj, of each head rows of keys and then of values.

    Files of 2025 hold keys as [heads, rank, plain], ready to be multiplied from the other side, and
    values as [heads, value, rank].
    """
    whole = [part for part in parts if len(part.shape) == 2]
    if whole:
        return whole[0]
    if len(parts) != 2:
        raise MissingTensor(f"{parts[0].path} holds {parts[0].name} and not what belongs to it")
    keys, values = parts
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    plain, value = config["qk_nope_head_dim"], config["v_head_dim"]
    for part, shape in ((keys, (heads, rank, plain)), (values, (heads, value, rank))):
        if part.shape != shape:
            raise ShapeMismatch(
                f"{part.path}: {part.name} has the shape {list(part.shape)}, but the metadata "
                f"gives {list(shape)}"
            )

    def read(first: int, last: int) -> Parts:
        start, end = first // (plain + value), -(-last // (plain + value))
        both = (keys.values(start, end).swapaxes(1, 2), values.values(start, end))
        rows = np.concatenate(both, axis=1).reshape(-1, rank)
        skipped = start * (plain + value)
        return {"weight": rows[first - skipped : last - skipped]}

    return replace(
        keys, shape=(heads * (plain + value), rank), read=read, scheme=None, whole=True,
        nbytes=keys.nbytes + values.nbytes,
    )  # fmt: skip
