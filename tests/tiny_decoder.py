"""Small random decoders: unmodified upstream and ours with the same weights."""

import torch
from diffusers import AutoencoderKL, GlmImageTransformer2DModel
from transformers import T5Config, T5EncoderModel

from decoder.autoencoder import Autoencoder
from decoder.config import TransformerConfig
from decoder.glyph import GlyphEncoder
from decoder.transformer import DiffusionTransformer
from tests.tiny import CODES, randomize

GLYPH_WIDTH = 24
CHANNELS = 4
CONFIGS = [
    TransformerConfig(
        in_channels=CHANNELS, out_channels=CHANNELS, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        text_embed_dim=GLYPH_WIDTH, time_embed_dim=32, condition_dim=16, prior_vq_quantizer_codebook_size=CODES,
    ),
    TransformerConfig(
        in_channels=CHANNELS, out_channels=CHANNELS, num_layers=2, attention_head_dim=8, num_attention_heads=5,
        text_embed_dim=GLYPH_WIDTH, time_embed_dim=24, condition_dim=8, prior_vq_quantizer_codebook_size=CODES,
    ),
]  # fmt: skip


def tiny_transformers(
    config: TransformerConfig, seed: int, std: float = 0.2
) -> tuple[GlmImageTransformer2DModel, DiffusionTransformer]:
    """Upstream's transformer and ours, same weights, fp32."""
    upstream = GlmImageTransformer2DModel(**config.model_dump()).eval()
    randomize(upstream, seed, std)
    ours = DiffusionTransformer(config).eval()
    ours.load_state_dict(upstream.state_dict())
    return upstream, ours


def tiny_glyph_encoder(seed: int = 0) -> GlyphEncoder:
    encoder = T5EncoderModel(
        T5Config(
            d_model=GLYPH_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=3, vocab_size=384,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    randomize(encoder, seed)
    return GlyphEncoder(encoder)


def tiny_autoencoder(seed: int = 0, **options: int) -> Autoencoder:
    network = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=4,
        mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False, sample_size=64,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.0, 2.0],
    ).eval()  # fmt: skip
    randomize(network, seed, std=0.1)
    return Autoencoder(network, **options)


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
