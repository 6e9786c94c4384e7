"""SmolLM3: Llama's layers, of which every fourth knows no positions."""

from __future__ import annotations

from sterna.base.errors import CheckpointError
from sterna.models.config import DecoderConfig, Fields, LayerKind
from sterna.models.family import Family


class SmolLM3(Family):
    """no_rope_layers holds a 1 for each layer that is rotated, whatever its name says."""

    MODEL_TYPES = ("smollm3",)
    ARCHITECTURES = ("SmolLM3ForCausalLM",)
    KEYS = (
        "rms_norm_eps attention_bias mlp_bias use_sliding_window sliding_window layer_types "
        "no_rope_layers no_rope_layer_interval max_window_layers"
    )

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        return f.decoder(
            kv_heads=4,
            theta=2e6,
            tied=True,
            attention_bias=f.flag("attention_bias"),
            mlp_bias=f.flag("mlp_bias"),
            kinds=cls.kinds(f),
        )

    @classmethod
    def kinds(cls, f: Fields) -> list[LayerKind]:
        """A window, where there is one at all, belongs to the layers with positions."""
        used = f.flag("use_sliding_window") and f.config.get("sliding_window") is not None
        window = f.positive("sliding_window") if used else -1
        period = f.positive("no_rope_layer_interval", 4)
        layers = f.positive("num_hidden_layers")
        rotated = f.config.get("no_rope_layers") or [
            int((i + 1) % period != 0) for i in range(layers)
        ]
        if not isinstance(rotated, list) or len(rotated) != layers or set(rotated) - {0, 1}:
            raise CheckpointError(
                f"no_rope_layers in config.json must hold a 0 or 1 for each of {layers} layers"
            )
        sliding = f.sliding(lambda i: bool(rotated[i]), used=used)
        return [
            LayerKind(window if s else -1, rope=0 if r else None)
            for s, r in zip(sliding, rotated, strict=True)
        ]
