"""A small checkpoint folder with random weights in which no path is silent."""

from pathlib import Path

import torch

from arimage.checkpoints.bpe import DEFAULT_CORPUS, token_id, train_tokenizer
from arimage.checkpoints.checkpoint import save_checkpoint
from arimage.checkpoints.components import meta_networks
from arimage.checkpoints.model_config import ModelConfig
from tests.tiny import randomize

CONFIG = ModelConfig.model_validate(
    {
        "vision_encoder": {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "image_size": 128},
        "quantizer": {"num_embeddings": 96, "embed_dim": 16, "latent_channels": 32},
        "text_model": {
            "vocab_size": 600, "vision_vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "mrope_section": [2, 1, 1],
            "rope_theta": 8.0,
            "pad_token_id": 590,
        },
        "transformer": {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3,
            "text_embed_dim": 24, "time_embed_dim": 32, "condition_dim": 16, "prior_vq_quantizer_codebook_size": 96,
        },
        "autoencoder": {
            "block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
            "sample_size": 64, "latents_mean": [0.1, -0.2, 0.0, 0.3], "latents_std": [1.2, 0.8, 1.0, 1.5],
        },
        "glyph_encoder": {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3},
        "processor": {"min_side": 64, "max_side": 256},
    }
)  # fmt: skip


def tiny_tokenizer(config: ModelConfig = CONFIG) -> tuple[dict, ModelConfig]:
    """A tokenizer definition, and the configuration with its pad token."""
    text = config.text_model
    definition = train_tokenizer(DEFAULT_CORPUS, text.vision_vocab_size, text.vocab_size)
    pad = {"pad_token_id": token_id(definition, "<|endoftext|>")}
    return definition, config.model_copy(update={"text_model": text.model_copy(update=pad)})


def tiny_states(config: ModelConfig, seed: int = 0) -> dict:
    """Random tensors for every component."""
    states = {}
    for i, (component, network) in enumerate(meta_networks(config).items()):
        randomize(network, seed + i, std=0.1 if component == "vae" else 0.15)
        states[component] = network.state_dict()
    return states


TEXT_FIRST = CONFIG.model_copy(update={"processor": CONFIG.processor.model_copy(update={"text_first": True})})


def tiny_folder(
    path: Path, seed: int = 0, dtype: torch.dtype = torch.float32, config: ModelConfig = CONFIG, **options
) -> Path:
    """Write the small checkpoint."""
    definition, config = tiny_tokenizer(config)
    return save_checkpoint(path, config, tiny_states(config, seed), definition, dtype=dtype, **options)
