"""The dimensions of a whole model in the config files of a checkpoint folder, read and written.

The files are those of the upstream classes; what is read becomes one validated :class:`ModelConfig`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from arimage.autoregressive.config import TextModelConfig
from arimage.checkpoints.components import MODEL_INDEX, OUR_KEY
from arimage.checkpoints.json_files import read_json, require, write_json
from arimage.checkpoints.model_config import AutoencoderConfig, GlyphEncoderConfig, ModelConfig
from arimage.checkpoints.processor import read_processor, write_processor
from arimage.errors import CheckpointError
from decoder.config import TransformerConfig
from decoder.sampler import ScheduleConfig
from tokenizer.config import QuantizerConfig, VisionEncoderConfig

Model = TypeVar("Model", bound=BaseModel)


def read_folder(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder.

    Keys that only the upstream classes use are passed over; values that change the computation in a way the
    networks here do not follow are refused.

    Raises:
        CheckpointError: a file is missing or a value is not supported; the message names file and key.
    """
    language = read_json(folder / "vision_language_encoder" / "config.json")
    path = folder / "vision_language_encoder" / "config.json"
    text, vision, quantizer = (_section(language, key, path) for key in ("text_config", "vision_config", "vq_config"))
    rope = {**text, **(text.get("rope_parameters") or text.get("rope_scaling") or {})}
    require(path, "text_config", rope, hidden_act="silu", rope_type="default", attention_dropout=0)
    require(path, "vision_config", vision, hidden_act="gelu", spatial_merge_size=1, attention_dropout=0)
    require(path, "", language, tie_word_embeddings=False)
    head_dim = text.get("head_dim")
    if head_dim and head_dim * text.get("num_attention_heads", 32) != text.get("hidden_size", 4096):
        raise CheckpointError(f"{path}: text_config.head_dim = {head_dim} is not hidden_size / num_attention_heads")
    transformer_path, vae_path = folder / "transformer" / "config.json", folder / "vae" / "config.json"
    glyph_path = folder / "text_encoder" / "config.json"
    scheduler_path = folder / "scheduler" / "scheduler_config.json"
    autoencoder, glyph = read_json(vae_path), read_json(glyph_path)
    require(vae_path, "", autoencoder, act_fn="silu")
    _require_blocks(vae_path, autoencoder)
    try:
        scheduler = ScheduleConfig.from_scheduler(read_json(scheduler_path))
    except ValueError as error:
        raise CheckpointError(f"{scheduler_path}: {error}") from None
    try:
        config = ModelConfig(
            vision_encoder=_pick(VisionEncoderConfig, vision, path, "vision_config"),
            quantizer=_pick(QuantizerConfig, quantizer, path, "vq_config"),
            text_model=_pick(TextModelConfig, rope, path, "text_config"),
            transformer=_pick(TransformerConfig, _transformer_defaults(transformer_path), transformer_path, ""),
            autoencoder=_pick(AutoencoderConfig, autoencoder, vae_path, ""),
            glyph_encoder=_pick(GlyphEncoderConfig, glyph, glyph_path, ""),
            scheduler=scheduler,
            processor=read_processor(folder / "processor"),
        )
    except ValidationError as error:
        raise CheckpointError(f"{folder}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    marks = {"image_start_token_id": config.image_start, "image_end_token_id": config.image_start + 1}
    require(path, "", language, **marks)
    return config


def _transformer_defaults(path: Path) -> dict[str, Any]:
    """The upstream class's own defaults under what the file says."""
    return {"attention_head_dim": 40, "num_attention_heads": 64, **read_json(path)}


def _section(data: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the key {key!r} is missing or is no object")
    return value


def _pick(model: type[Model], data: Mapping[str, Any], path: Path, section: str) -> Model:
    try:
        return model(**{name: data[name] for name in model.model_fields if data.get(name) is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (section, *first["loc"]) if part != "")
        raise CheckpointError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}") from None


def _require_blocks(path: Path, data: Mapping[str, Any]) -> None:
    wanted = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    for key, kind in wanted.items():
        if any(block != kind for block in data.get(key, [])):
            raise CheckpointError(f"{path}: {key} = {data[key]!r} is not supported, only {kind!r} blocks")


def write_configuration(
    folder: Path, config: ModelConfig, tokenizer: Mapping[str, Any], dtype: torch.dtype, ours: Mapping[str, Any]
) -> None:
    """Write all files of a checkpoint folder but the weights; ``ours`` is what no other program reads."""
    write_json(folder / "model_index.json", {**MODEL_INDEX, OUR_KEY: dict(ours)})
    placeholder = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|image|>")
    for place, contents in _config_files(config, dtype, placeholder).items():
        write_json(folder / place, contents)
    write_processor(folder, config, tokenizer)


def _config_files(config: ModelConfig, dtype: torch.dtype, placeholder: int) -> dict[str, dict[str, Any]]:
    """The config files of the upstream classes, by their place in the folder."""
    precision = str(dtype).removeprefix("torch.")
    text = config.text_model.model_dump()
    rope = {name: text.pop(name) for name in ("rope_theta", "partial_rotary_factor", "mrope_section")}
    start = config.image_start
    return {
        "vision_language_encoder/config.json": {
            "architectures": ["GlmImageForConditionalGeneration"],
            "model_type": "glm_image",
            "dtype": precision,
            "tie_word_embeddings": False,
            "image_token_id": placeholder,
            "image_start_token_id": start,
            "image_end_token_id": start + 1,
            "text_config": {
                "model_type": "glm_image_text",
                **text,
                "hidden_act": "silu",
                "attention_dropout": 0.0,
                "eos_token_id": start + 1,
                "rope_parameters": {"rope_type": "default", **rope},
            },
            "vision_config": {
                "model_type": "glm_image_vision",
                **config.vision_encoder.model_dump(),
                "hidden_act": "gelu",
                "attention_dropout": 0.0,
                "spatial_merge_size": 1,
            },
            "vq_config": {"model_type": "glm_image_vqmodel", **config.quantizer.model_dump()},
        },
        "vision_language_encoder/generation_config.json": {
            "do_sample": True,
            "temperature": 0.9,
            "top_p": 0.75,
            "top_k": config.text_model.vision_vocab_size,
            "eos_token_id": start + 1,
            "pad_token_id": config.text_model.pad_token_id,
        },
        "transformer/config.json": {"_class_name": "GlmImageTransformer2DModel", **config.transformer.model_dump()},
        "vae/config.json": {"_class_name": "AutoencoderKL", "act_fn": "silu", **config.autoencoder.arguments()},
        "text_encoder/config.json": {
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "dtype": precision,
            "is_encoder_decoder": False,
            "use_cache": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
            **config.glyph_encoder.model_dump(),
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            **config.scheduler.model_dump(),
            "use_dynamic_shifting": True,
            "time_shift_type": "linear",
            "max_image_seq_len": 4096,
            "shift": 1.0,
        },
    }
