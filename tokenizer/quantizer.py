"""The cosine vector quantiser: every feature becomes the code whose direction is nearest.

Parameter names are the checkpoint's (``model.vqmodel.*``). Training the codebook is a library's work
(vector-quantize-pytorch); what it learns is exported into the plain table here.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.config import QuantizerConfig


class Codebook(nn.Module):
    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_embeddings, config.embed_dim)


class VectorQuantizer(nn.Module):
    """A 1x1 projection into the codebook's space, the codebook, and the projection back."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Codes of feature maps: (B, hidden, h, w) -> (B, h, w), or of one without B, in [0, num_embeddings)."""
        vectors = F.normalize(self.quant_conv(features).movedim(-3, -1), dim=-1)
        return (vectors @ F.normalize(self.quantize.embedding.weight, dim=-1).T).argmax(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        """The unit vectors of codes: (...) -> (..., embed_dim)."""
        return F.normalize(self.quantize.embedding(codes), dim=-1)
