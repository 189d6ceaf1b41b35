"""Small random models for tests: unmodified upstream and ours with the same weights.

Every parameter is drawn from one normal distribution, so that no path is silent (library initialisations start
gates and biases at zero, and a broken path would not show).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import GlmImageConfig, GlmImageForConditionalGeneration

from arimage.autoregressive.config import TextModelConfig
from arimage.autoregressive.model import AutoregressiveModel
from arimage.autoregressive.vocabulary import Vocabulary
from tokenizer.config import QuantizerConfig, VisionEncoderConfig
from tokenizer.semantic_tokenizer import SemanticTokenizer

CODES = 64
VISION_WORDS = 80
TEXT = VISION_WORDS
VOCABULARY = Vocabulary(
    codebook_size=CODES,
    image_start=CODES,
    image_end=CODES + 1,
    grid_start=TEXT + 256,
    grid_end=TEXT + 257,
    pad=TEXT + 259,
    encode=lambda text: [TEXT + byte for byte in text.encode()],
)
IMAGE_PLACEHOLDER = TEXT + 258
VOCABULARY_SIZE = TEXT + 260


@dataclass(frozen=True)
class Shape:
    """Dimensions that differ between test models."""

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    shared_heads: int = 2
    mrope: tuple[int, int, int] = (2, 1, 1)
    vision_hidden: int = 48
    vision_heads: int = 4
    positions: int = 8


SHAPES = [Shape(), Shape(hidden=96, layers=2, heads=2, shared_heads=1, mrope=(4, 4, 4), vision_hidden=32, positions=5)]


def randomize(module: nn.Module, seed: int, std: float = 0.2) -> None:
    """Draw every parameter from a normal distribution: token embeddings with unit variance, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * (1.0 if "embed_tokens" in name else std)
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)


def tiny_language_encoder(
    shape: Shape, seed: int
) -> tuple[GlmImageForConditionalGeneration, AutoregressiveModel, SemanticTokenizer]:
    """Upstream's vision-language encoder, and our two networks with its weights."""
    upstream = GlmImageForConditionalGeneration(
        GlmImageConfig(
            text_config={
                "vocab_size": VOCABULARY_SIZE,
                "vision_vocab_size": VISION_WORDS,
                "hidden_size": shape.hidden,
                "intermediate_size": 2 * shape.hidden,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.shared_heads,
                "pad_token_id": VOCABULARY.pad,
                "eos_token_id": VOCABULARY.image_end,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": list(shape.mrope),
                },
            },
            vision_config={
                "depth": 2,
                "hidden_size": shape.vision_hidden,
                "num_heads": shape.vision_heads,
                "intermediate_size": 64,
                "image_size": 16 * shape.positions,
                "patch_size": 16,
            },
            vq_config={"embed_dim": 24, "num_embeddings": CODES, "latent_channels": shape.vision_hidden},
            image_token_id=IMAGE_PLACEHOLDER,
            image_start_token_id=VOCABULARY.image_start,
            image_end_token_id=VOCABULARY.image_end,
        )
    ).eval()
    randomize(upstream, seed)
    state = upstream.state_dict()
    model = AutoregressiveModel(tiny_text_config(shape)).eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    semantic = SemanticTokenizer(
        VisionEncoderConfig(
            depth=2,
            hidden_size=shape.vision_hidden,
            num_heads=shape.vision_heads,
            intermediate_size=64,
            image_size=16 * shape.positions,
        ),
        QuantizerConfig(num_embeddings=CODES, embed_dim=24, latent_channels=shape.vision_hidden),
    ).eval()
    semantic.load_state_dict({name: state[name] for name in semantic.state_dict()})
    return upstream, model, semantic


def tiny_text_config(shape: Shape) -> TextModelConfig:
    return TextModelConfig(
        vocab_size=VOCABULARY_SIZE,
        vision_vocab_size=VISION_WORDS,
        hidden_size=shape.hidden,
        intermediate_size=2 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.shared_heads,
        mrope_section=shape.mrope,
        pad_token_id=VOCABULARY.pad,
    )


def tiny_autoregressive(shape: Shape = SHAPES[0], seed: int = 0, std: float = 0.1) -> AutoregressiveModel:
    """Our model alone, random."""
    model = AutoregressiveModel(tiny_text_config(shape)).eval()
    randomize(model, seed, std)
    return model


def random_codes(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CODES, (height, width), generator=torch.Generator().manual_seed(seed))
