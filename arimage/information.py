"""What a model needs: parameters and memory of each network, from its configuration alone."""

from dataclasses import dataclass

import torch
from torch import nn

from arimage.autoregressive.model import AutoregressiveModel
from arimage.checkpoint import build_autoencoder, build_glyph_encoder
from arimage.configuration import ModelConfig
from decoder.transformer import DiffusionTransformer
from tokenizer.semantic_tokenizer import SemanticTokenizer


@dataclass(frozen=True)
class NetworkSize:
    """Parameters of a network; its weights take ``parameters * bytes per number``."""

    network: str
    folder: str
    parameters: int

    def gigabytes(self, bytes_per_number: int) -> float:
        return self.parameters * bytes_per_number / 1e9


def network_sizes(config: ModelConfig) -> list[NetworkSize]:
    """Sizes of the five networks, in the order in which they are used; nothing is allocated."""
    with torch.device("meta"):
        networks: list[tuple[str, str, nn.Module]] = [
            (
                "semantic tokenizer",
                "vision_language_encoder",
                SemanticTokenizer(config.vision_encoder, config.quantizer),
            ),
            ("autoregressive model", "vision_language_encoder", AutoregressiveModel(config.text_model)),
            ("glyph encoder", "text_encoder", build_glyph_encoder(config)),
            ("diffusion transformer", "transformer", DiffusionTransformer(config.transformer)),
            ("autoencoder", "vae", build_autoencoder(config)),
        ]
    return [
        NetworkSize(name, folder, sum(parameter.numel() for parameter in network.parameters()))
        for name, folder, network in networks
    ]
