"""The components of a checkpoint folder: their names, their networks, and which tensors belong to each."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from arimage.autoregressive.model import AutoregressiveModel
from arimage.checkpoints.model_config import ModelConfig
from arimage.errors import CheckpointError
from backends.private import unfilled
from decoder.transformer import DiffusionTransformer
from tokenizer.semantic_tokenizer import SemanticTokenizer

Component = Literal["vision_language_encoder", "transformer", "vae", "text_encoder"]
COMPONENTS: tuple[Component, ...] = ("vision_language_encoder", "transformer", "vae", "text_encoder")
MODEL_INDEX = {
    "_class_name": "GlmImagePipeline",
    "processor": ["transformers", "GlmImageProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "ByT5Tokenizer"],
    "transformer": ["diffusers", "GlmImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "vision_language_encoder": ["transformers", "GlmImageForConditionalGeneration"],
}
WEIGHT_NAMES = {
    "vision_language_encoder": "model",
    "text_encoder": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
T5_ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
OUR_KEY = "_arimage"


def build_autoencoder(config: ModelConfig) -> nn.Module:
    """The upstream class of the autoencoder, with its own initialisation."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**config.autoencoder.arguments())


def build_glyph_encoder(config: ModelConfig) -> Any:
    """The upstream class of the glyph encoder, with its own initialisation."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**config.glyph_encoder.model_dump(), is_encoder_decoder=False, use_cache=False))


def check_states(config: ModelConfig, states: Mapping[Component, Mapping[str, Tensor]]) -> None:
    """Compare tensors that are to be written with what the configuration says.

    Raises:
        CheckpointError: one is missing, left over or of another shape.
    """
    with unfilled():
        wanted = {component: network.state_dict() for component, network in meta_networks(config).items()}
    for component, shapes in wanted.items():
        given = states.get(component, {})
        for name, tensor in shapes.items():
            if name in given and given[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{component}: the tensor {name!r} has shape {tuple(given[name].shape)}, "
                    f"the configuration says {tuple(tensor.shape)}"
                )
            if name not in given and T5_ALIASES.get(name) not in given:
                raise CheckpointError(f"{component}: the tensor {name!r} is missing")
        for name in given:
            if name not in shapes:
                raise CheckpointError(f"{component}: the tensor {name!r} belongs to no network")


def meta_networks(config: ModelConfig) -> dict[Component, nn.Module]:
    """The networks of each component, on the device that is current; free on the meta device."""
    language = nn.ModuleDict()
    language["model"] = nn.Module()
    autoregressive = AutoregressiveModel(config.text_model)
    semantic = SemanticTokenizer(config.vision_encoder, config.quantizer)
    language["model"].language_model = autoregressive.model.language_model
    language["model"].visual = semantic.model.visual
    language["model"].vqmodel = semantic.model.vqmodel
    language["lm_head"] = autoregressive.lm_head
    return {
        "vision_language_encoder": language,
        "transformer": DiffusionTransformer(config.transformer),
        "vae": build_autoencoder(config),
        "text_encoder": build_glyph_encoder(config),
    }
