"""What a converted model holds: every stored weight, its tensors, and the checkpoint's part in it.

In: a config.json and a scheme. Out: StoredWeights under MLC's names, in model order, q/k/v and
gate/up stacked along their rows as the family's FUSED table says. It does not know files: whether
a checkpoint really has these tensors is for `convert` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import cast

from sterna.base.dtype import DType
from sterna.checkpoint.model_folder import digest
from sterna.models import family
from sterna.models.config import Config
from sterna.quantize.pack import packed_spec
from sterna.quantize.recipe import Quantization, recipe_json
from sterna.quantize.scheme import Kind, Scheme

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight of the model folder, plain or packed.

    `name` is its path with its last component, as in "model.norm.weight"; `sources` are the
    checkpoint's tensors whose rows, in this order, make it up, columns where they are `transposed`
    there; `parts` maps "q_weight", "q_scale", "q_zero" and the like, or the last component of a
    weight that is not packed, to shape and dtype.
    """

    name: str
    kind: Kind
    scheme: Scheme
    sources: tuple[str, ...]
    source_shapes: tuple[Shape, ...]
    parts: Mapping[str, tuple[Shape, DType]]
    transposed: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of the whole weight before packing."""
        return _stacked(tuple(_turned(s, self.transposed) for s in self.source_shapes))

    def tensor_name(self, part: str) -> str:
        """The name of a part's tensor in the model folder."""
        return f"{self.name.rpartition('.')[0]}.{part}"

    @property
    def tensors(self) -> dict[str, tuple[Shape, DType]]:
        """Shape and dtype of each tensor in the folder, by its name there."""
        return {self.tensor_name(part): spec for part, spec in self.parts.items()}


def stored_weights(config: Config, quantization: Quantization) -> list[StoredWeight]:
    """Every weight that a folder of this model holds; a tied head is not there a second time.

    Weights that are stacked as a rule stay apart where their schemes differ, as `combine_matmul`
    leaves them.
    Raises CheckpointError and UnsupportedModel as the family's `read_config` does.
    """
    module = family(config)
    plain = list(module.build(config, quantization.compute).parameters())
    shapes = {path: parameter.shape for path, parameter in plain}
    schemes = {path: quantization.for_weight(path, cast(Kind, p.kind)) for path, p in plain}
    fused = {part: (name, parts) for name, parts in module.FUSED.items() for part in parts}
    found: dict[str, StoredWeight] = {}
    for path, parameter in plain:
        prefix, own, leaf = _split(path)
        if parameter.stack > 1:
            sources = module.expert_names(path, parameter.stack)
            rows, *rest = parameter.shape
            shapes |= dict.fromkeys(sources, (rows // parameter.stack, *rest))
            kind = cast(Kind, parameter.kind)
            found[path] = _stored(path, sources, shapes, kind, schemes[path])
            continue
        name, parts = fused.get(own, (own, (own,)))
        if not _stackable(prefix, parts, schemes):
            name, parts = own, (own,)
        stored = _join(prefix, name, leaf)
        if stored not in found:
            sources = tuple(_join(prefix, part, leaf) for part in parts)
            kind = cast(Kind, parameter.kind)
            weight = _stored(stored, sources, shapes, kind, schemes[path])
            turned = own in module.TRANSPOSED and leaf == "weight"
            found[stored] = _as_checkpoint(weight) if turned else weight
    return list(found.values())


def fingerprint(config: Config, quantization: Quantization) -> str:
    """A hash of all that shapes the program: what the family reads of a config, and the scheme.

    Remarks in the config (its author's version of transformers, token ids) do not count.
    """
    read = asdict(family(config).read_config(config))
    own = {} if isinstance(quantization, Scheme) else {"recipe": recipe_json(quantization)}
    return digest(
        {
            "model_type": config.get("model_type"),
            "quantization": quantization.name,
            "config": read,
            **own,
        }
    )


def tied_head(config: Config) -> tuple[str, str] | None:
    """(head, embedding) where the config ties them; a file may hold either name, or both."""
    module = family(config)
    return module.tied() if module.read_config(config).tie_word_embeddings else None


def base_model(config: Config) -> str:
    """The first component of the names of all that is not the head."""
    return family(config).tied()[1].partition(".")[0]


def plain_name(config: Config, name: str) -> str:
    """A tensor's name in a file, as the family spells it."""
    for begin, own in family(config).PREFIXES.items():
        done = own.startswith(begin) and name.startswith(own)
        if name.startswith(begin) and not done:
            name = own + name.removeprefix(begin)
    return name


def head_tensors(config: Config) -> tuple[str, ...]:
    """The names that the head's tensors may have."""
    name = family(config).tied()[0].rpartition(".")[0]
    return f"{name}.weight", f"{name}.bias"


def is_ignored(config: Config, name: str) -> bool:
    """Whether nothing reads a tensor: it is not learned, or of a head that is not used."""
    module = family(config)
    read = module.read_config(config)
    unused = read.pooling is not None and name in head_tensors(config)
    patterns = (p.replace("{layers}", str(read.num_hidden_layers)) for p in module.IGNORED)
    return unused or any(fnmatchcase(name, pattern) for pattern in patterns)


def _split(path: str) -> tuple[str, str, str]:
    """("model.layers.0.mlp", "up_proj", "weight") of "model.layers.0.mlp.up_proj.weight"."""
    module, _, leaf = path.rpartition(".")
    prefix, _, own = module.rpartition(".")
    return prefix, own, leaf


def _join(prefix: str, own: str, leaf: str) -> str:
    return ".".join(part for part in (prefix, own, leaf) if part)


def _stackable(prefix: str, parts: tuple[str, ...], schemes: Mapping[str, Scheme]) -> bool:
    """Whether parts are stored alike, row by row: their weights, and their biases."""
    for leaf in ("weight", "bias"):
        paths = [_join(prefix, part, leaf) for part in parts]
        found = {schemes[path] for path in paths if path in schemes}
        if len(found) > 1 or any(scheme.indexed for scheme in found):
            return False
    return True


def _stored(
    name: str, sources: tuple[str, ...], shapes: Mapping[str, Shape], kind: Kind, own: Scheme
) -> StoredWeight:
    parts = tuple(shapes[source] for source in sources)
    spec = packed_spec(_stacked(parts), own)
    if not own.is_quantized:
        spec = {name.rpartition(".")[2]: spec["weight"]}
    return StoredWeight(name, kind, own, sources, parts, MappingProxyType(spec))


def _as_checkpoint(weight: StoredWeight) -> StoredWeight:
    """The weight of a layer whose checkpoint holds [in, out]."""
    shapes = tuple(_turned(shape, True) for shape in weight.source_shapes)
    return replace(weight, source_shapes=shapes, transposed=True)


def _turned(shape: Shape, transposed: bool) -> Shape:
    return shape[::-1] if transposed else shape


def _stacked(parts: tuple[Shape, ...]) -> Shape:
    """Rows on rows."""
    return (sum(shape[0] for shape in parts), *parts[0][1:])
