"""Which scheme a model folder really holds: MLC's groups and layouts differ from ours by name.

In: an opened folder. Out: the Scheme of its tensors, told from their shapes, or the
Recipe that it states. A folder that Sterna
wrote holds what it says; one without an index (a library is compiled before the weights are
there) is taken at its word.
"""

from __future__ import annotations

from sterna.checkpoint.mlc_index import INDEX, OLD_INDEX, find_mlc_index, read_mlc_index
from sterna.checkpoint.model_folder import STERNA, ModelFolder
from sterna.models.params import stored_weights
from sterna.quantize.infer import infer
from sterna.quantize.recipe import Quantization, read_recipe
from sterna.quantize.scheme import scheme


def stored_scheme(folder: ModelFolder) -> Quantization:
    """The scheme by which the folder's linear layers are packed, or the recipe of all weights."""
    if folder.recipe is not None:
        return read_recipe(folder.quantization, folder.recipe, str(folder.folder / STERNA))
    named = scheme(folder.quantization)
    if not named.is_quantized or (folder.folder / STERNA).is_file():
        return named
    if not any((folder.folder / name).is_file() for name in (INDEX, OLD_INDEX)):
        return named
    tensors = read_mlc_index(find_mlc_index(folder.folder)).tensors
    for weight in stored_weights(folder.config, named):
        codes = tensors.get(weight.tensor_name("q_weight"))
        scales = tensors.get(weight.tensor_name("q_scale"))
        if weight.kind == "linear" and codes is not None and scales is not None:
            return infer(named, codes.shape, scales.shape, weight.shape)
    return named
