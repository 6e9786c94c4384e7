"""Writes goldens/vision of tiny_grid_vision: `python tests/models/make_grid_vision_goldens.py`.

With torch. Out: for each variant the logits that transformers computes in float32 on the CPU with
eager attention, of one prompt with two images and of a text alone; the rows of the images; the
positions that it gives to the prompt's tokens; the checksum of the weights under the checkpoint's
names; how far float64 lies. And what Qwen2-VL's processor makes of drawn pictures.
"""

from __future__ import annotations

import copy

import numpy as np
import tiny_families as tiny
import tiny_grid_vision as vision
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

ON_DISK = (("model.visual.", "visual."), ("model.language_model.", "model."))
CUT = vision.PLACES[1] + vision.TOKENS[1] + 1  # the prompt up to here, then token by token


def on_disk(name: str) -> str:
    for inside, outside in ON_DISK:
        if name.startswith(inside):
            return outside + name.removeprefix(inside)
    return name


def build(config: dict[str, object]) -> tuple[torch.nn.Module, dict[str, NDArray]]:
    given = copy.deepcopy(config)
    parsed = transformers.CONFIG_MAPPING[str(given["model_type"])].from_dict(given)
    kind = getattr(transformers, config["architectures"][0])  # type: ignore[index]
    model = kind._from_config(parsed, attn_implementation="eager", dtype=torch.float32)
    state = model.state_dict()
    weights = {on_disk(k): tiny.draw(on_disk(k), tuple(v.shape)) for k, v in state.items()}
    model.load_state_dict({k: torch.from_numpy(weights[on_disk(k)]) for k in state})
    return model.eval(), weights


@torch.no_grad()
def golden(variant: str) -> dict[str, NDArray]:
    model, weights = build(vision.VARIANTS[variant])
    prompt, at = torch.tensor([vision.PROMPT]), list(vision.POSITIONS)
    types = (prompt == vision.IMAGE_TOKEN).int()
    merge = vision.MERGE
    grids = torch.tensor([[1, rows * merge, columns * merge] for rows, columns in vision.GRIDS])
    pixels = torch.from_numpy(np.concatenate(vision.images()))
    shown = {"image_grid_thw": grids, "pixel_values": pixels}
    single = model(prompt, mm_token_type_ids=types, use_cache=False, **shown).logits[0].numpy()
    positions, _ = model.model.get_rope_index(prompt, types, image_grid_thw=grids)
    features = model.get_image_features(pixel_values=pixels, image_grid_thw=grids)
    features = getattr(features, "pooler_output", features)
    model.model.rope_deltas = None
    text = model(torch.tensor([vision.TEXT]), use_cache=False).logits[0].numpy()
    stepped(model, prompt, types, shown, single)
    shown["pixel_values"] = pixels.double()
    double = model.double()(prompt, mm_token_type_ids=types, use_cache=False, **shown)
    return {
        "transformers": np.array(transformers.__version__),
        "weights_crc32": np.array(tiny.checksum(weights)),
        "logits": single[at].astype(np.float32),
        "text": text.astype(np.float32),
        **{f"rows_{i}": rows.numpy() for i, rows in enumerate(features)},
        "positions": positions[:, 0].T.numpy().astype(np.int32),
        "float64_gap": np.array(np.abs(single - double.logits[0].numpy()).max()),
    }


def stepped(
    model: torch.nn.Module,
    prompt: torch.Tensor,
    types: torch.Tensor,
    shown: dict[str, torch.Tensor],
    whole: NDArray,
) -> None:
    """Token by token behind the images it gives the same: the goldens stand for both."""
    model.model.rope_deltas = None
    out = model(prompt[:, :CUT], mm_token_type_ids=types[:, :CUT], use_cache=True, **shown)
    for i in range(CUT, prompt.shape[1]):
        out = model(prompt[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
        assert np.abs(out.logits[0, -1].numpy() - whole[i]).max() < 1e-5


def processed() -> dict[str, NDArray]:
    """What the processor makes of the drawn pictures."""
    processor = transformers.Qwen2VLImageProcessorPil(**vision.PREPROCESSOR)
    found: dict[str, NDArray] = {}
    for i, pixels in enumerate(vision.drawn()):
        made = processor([Image.fromarray(pixels)], return_tensors="np")
        found[f"grid_{i}"] = made["image_grid_thw"][0, 1:]
        found[f"patches_{i}"] = made["pixel_values"].astype(np.float32)
    return found


def main() -> None:
    torch.set_num_threads(1)
    np.savez_compressed(vision.GOLDENS / "qwen2_vl_processor.npz", **processed())
    for variant in vision.VARIANTS:
        found = golden(variant)
        np.savez_compressed(vision.GOLDENS / f"{variant}.npz", **found)
        spread, gap = found["logits"].std(), float(found["float64_gap"])
        print(f"{variant:20} logits {spread:.2f} float64 gap {gap:.1e}")


if __name__ == "__main__":
    main()
