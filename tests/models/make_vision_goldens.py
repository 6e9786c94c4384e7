"""Writes goldens/vision: `python tests/models/make_vision_goldens.py [VARIANT ...]`, with torch.

Out: for each variant of `tiny_vision.py` the logits that transformers computes in float32 on the
CPU with eager attention, of one prompt with two images; the rows that stand for the first; the
checksum of the weights under the checkpoint's names; how far float64 lies.
"""

from __future__ import annotations

import copy
import sys

import numpy as np
import tiny_families as tiny
import tiny_vision as vision
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

# What files call a part that transformers 5 calls otherwise while it runs.
ON_DISK = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.embeddings.", "vision_tower.vision_model.embeddings."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
# What files hold behind the states that are given on.
UNREAD = (
    "vision_tower.vision_model.encoder.layers.2.",
    "vision_tower.vision_model.post_layernorm.",
)


def on_disk(name: str) -> str:
    name = name.replace("vision_tower.vision_model.", "vision_tower.")
    for inside, outside in ON_DISK:
        if name.startswith(inside):
            return outside + name.removeprefix(inside)
    raise ValueError(f"no file has a tensor for {name}")


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
    pixels = torch.from_numpy(np.stack(vision.images()))
    single = model(prompt, pixel_values=pixels, use_cache=False).logits[0, at].numpy()
    features = model.get_image_features(pixel_values=pixels)
    features = getattr(features, "pooler_output", features)
    rows = features[0].numpy()
    double = model.double()(prompt, pixel_values=pixels.double(), use_cache=False)
    read = {k: v for k, v in weights.items() if not k.startswith(UNREAD)}
    return {
        "transformers": np.array(transformers.__version__),
        "weights_crc32": np.array(tiny.checksum(read)),
        "logits": single.astype(np.float32),
        "rows": rows.astype(np.float32),
        "float64_gap": np.array(np.abs(single - double.logits[0, at].numpy()).max()),
    }


def processed() -> NDArray:
    """What CLIP's processor makes of the drawn pictures."""
    processor = transformers.CLIPImageProcessorPil(**vision.PREPROCESSOR)
    pictures = [Image.fromarray(drawn) for drawn in vision.drawn()]
    return np.stack(processor(pictures, return_tensors="np")["pixel_values"])


def main() -> None:
    torch.set_num_threads(1)
    vision.GOLDENS.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(vision.GOLDENS / "clip_processor.npz", pixels=processed())
    for variant in sys.argv[1:] or vision.VARIANTS:
        found = golden(variant)
        np.savez_compressed(vision.GOLDENS / f"{variant}.npz", **found)
        spread, gap = found["logits"].std(), float(found["float64_gap"])
        print(f"{variant:20} logits {spread:.2f} float64 gap {gap:.1e} rows {found['rows'].shape}")


if __name__ == "__main__":
    main()
