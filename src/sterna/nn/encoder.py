"""The skeleton of BERT's descendants: embeddings that are summed and normalized, then layers."""

from __future__ import annotations

from sterna.base.dtype import F32
from sterna.nn.decoder import Decoder, DecoderLayer
from sterna.nn.linear import Embedding
from sterna.nn.module import Layers
from sterna.nn.norm import Norm
from sterna.nn.trace import Tensor


class Encoder(Decoder):
    """Embeddings of token, position and type, normalized; nothing follows the last layer.

    Texts are of one part, so each token is of type 0.
    """

    def __init__(
        self,
        embed_tokens: Embedding,
        position_embeddings: Embedding,
        type_embeddings: Embedding,
        norm: Norm,
        layers: Layers[DecoderLayer],
    ) -> None:
        super().__init__(embed_tokens, layers, norm, position_embeddings=position_embeddings)
        self.type_embeddings = type_embeddings

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See Decoder.embed."""
        types = self.type_embeddings.weight.read(tokens.trace)
        first = tokens.trace.emit("row", types, index=0).cast(F32)
        return self.norm(super().embed(tokens, positions) + first)

    def finish(self, x: Tensor) -> Tensor:
        return x
