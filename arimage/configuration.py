"""The dimensions of a whole model, from a YAML file or from a checkpoint folder.

A YAML file holds one section a network (``configs/nano/model.yaml``); a checkpoint folder holds the same numbers in
the config files of the reference classes. Both become one validated :class:`ModelConfig`; a wrong key is named
together with the nearest right one.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from arimage.autoregressive.config import TextModelConfig
from arimage.errors import CheckpointError, UsageError, nearest
from arimage.hub import fetch_hint, refuse_pointer
from decoder.config import TransformerConfig
from decoder.sampler import ScheduleConfig
from tokenizer.config import QuantizerConfig, VisionEncoderConfig

Model = TypeVar("Model", bound=BaseModel)
RESERVED_VISION_WORDS = 128


class AutoencoderConfig(BaseModel):
    """The latent autoencoder (diffusers ``AutoencoderKL``); defaults are the released dimensions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = Field(3, ge=1)
    out_channels: int = Field(3, ge=1)
    block_out_channels: tuple[int, ...] = (128, 512, 1024, 1024)
    layers_per_block: int = Field(3, ge=1)
    latent_channels: int = Field(16, ge=1)
    norm_num_groups: int = Field(32, ge=1)
    sample_size: int = 1024
    scaling_factor: float = 1.0
    shift_factor: float | None = None
    mid_block_add_attention: bool = False
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    force_upcast: bool = False
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "AutoencoderConfig":
        if len(self.block_out_channels) != 4:
            raise ValueError("block_out_channels needs 4 entries: a latent covers 8x8 pixels")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError("every entry of block_out_channels must be a multiple of norm_num_groups")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(f"{name} needs one value for each of the {self.latent_channels} latent channels")
        return self

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``AutoencoderKL``."""
        blocks = len(self.block_out_channels)
        return {
            **self.model_dump(),
            "latents_mean": self.latents_mean or (0.0,) * self.latent_channels,
            "latents_std": self.latents_std or (1.0,) * self.latent_channels,
            "down_block_types": ("DownEncoderBlock2D",) * blocks,
            "up_block_types": ("UpDecoderBlock2D",) * blocks,
        }


class GlyphEncoderConfig(BaseModel):
    """The glyph encoder (a T5 encoder over bytes); defaults are ByT5-small's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = Field(1472, ge=1)
    d_kv: int = Field(64, ge=1)
    d_ff: int = Field(3584, ge=1)
    num_layers: int = Field(12, ge=1)
    num_heads: int = Field(6, ge=1)
    vocab_size: int = Field(384, ge=259)
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"


class ProcessorConfig(BaseModel):
    """Sizes at which reference pictures are seen, in pixels (short side at least, long side at most)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_side: int = Field(512, ge=32)
    max_side: int = Field(2048, ge=32)


class ModelConfig(BaseModel):
    """All networks of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vision_encoder: VisionEncoderConfig = VisionEncoderConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    text_model: TextModelConfig = TextModelConfig()
    transformer: TransformerConfig = TransformerConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    glyph_encoder: GlyphEncoderConfig = GlyphEncoderConfig()
    scheduler: ScheduleConfig = ScheduleConfig()
    processor: ProcessorConfig = ProcessorConfig()

    @property
    def image_start(self) -> int:
        """The token after the last code; image end follows it."""
        return self.quantizer.num_embeddings

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        codes = self.quantizer.num_embeddings
        pairs = [
            ("transformer.prior_vq_quantizer_codebook_size", self.transformer.prior_vq_quantizer_codebook_size,
             "quantizer.num_embeddings", codes),
            ("quantizer.latent_channels", self.quantizer.latent_channels,
             "vision_encoder.hidden_size", self.vision_encoder.hidden_size),
            ("transformer.text_embed_dim", self.transformer.text_embed_dim,
             "glyph_encoder.d_model", self.glyph_encoder.d_model),
            ("transformer.in_channels", self.transformer.in_channels,
             "autoencoder.latent_channels", self.autoencoder.latent_channels),
            ("transformer.out_channels", self.transformer.out_channels,
             "transformer.in_channels", self.transformer.in_channels),
        ]  # fmt: skip
        for name, value, other, wanted in pairs:
            if value != wanted:
                raise ValueError(f"{name} is {value} but must equal {other}, which is {wanted}")
        if self.text_model.vision_vocab_size < codes + 2:
            raise ValueError(
                f"text_model.vision_vocab_size is {self.text_model.vision_vocab_size}; {codes} codes, image start and "
                f"image end need at least {codes + 2}"
            )
        if self.text_model.vocab_size <= self.text_model.vision_vocab_size:
            raise ValueError("text_model.vocab_size must exceed vision_vocab_size: text rows come after vision words")
        return self


def load_yaml(path: str | Path, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """Read and validate a YAML file.

    Its key ``extends`` names the file, or the list of files, that it builds on, relative to itself. Where two files set
    the same key, the later one in the list wins, and the file itself over them all; sections are merged key by key.

    Args:
        overrides: ``key=value`` with dotted keys (``text_model.hidden_size=128``); values are YAML.

    Raises:
        UsageError: the file or one that it extends cannot be read, files extend each other in a circle, or a key or
            value is wrong; the message names it and, for an unknown key, the nearest known one.
    """
    data = _read_yaml(Path(path))
    for override in overrides:
        _override(data, override)
    return validate(data, model, str(path))


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Keys and values of a file, over those of the files that it ``extends``; ``above`` are those that extend it."""
    chain = " extends ".join(str(file) for file in (*above, path))
    if path.resolve() in [file.resolve() for file in above]:
        raise UsageError(f"{above[-1]}: extends goes in a circle: {chain}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        if not above:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        hint = nearest(path.name, [file.name for file in path.parent.glob("*.yaml")])
        raise UsageError(
            f"{above[-1]}: extends {path}, which cannot be read: {error.strerror}{hint} ({chain})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold keys and values, not a {type(data).__name__}")
    names = data.pop("extends", None) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: extends names a file or a list of files, not {names!r}")
    result: dict[str, Any] = {}
    for name in names:
        result = merged(result, _read_yaml(path.parent / name, (*above, path)))
    return merged(result, data)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``over`` in place of those of ``base``; sections are merged, lists and values replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(result.get(key), Mapping) and isinstance(value, Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def validate(data: Mapping[str, Any], model: type[Model], source: str) -> Model:
    """Validate plain data; see :func:`load_yaml` for errors."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _keys_at(model, first["loc"][:-1])
            hint = nearest(str(first["loc"][-1]), known)
            raise UsageError(f"{source}: unknown key {place!r}{hint}; known here: {', '.join(sorted(known))}") from None
        message = first["msg"].removeprefix("Value error, ")
        where = f"{place}: " if place else ""
        raise UsageError(f"{source}: {where}{message}") from None


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError(f"{override!r} is no override; write key=value, for example text_model.hidden_size=128")
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise UsageError(f"{override!r}: {section!r} holds a value, not keys")
    data[last] = yaml.safe_load(value)


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    for part in place:
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint folder.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = fetch_hint(path) or "; the folder is not a complete GLM-Image checkpoint"
        raise CheckpointError(f"{path} is missing{hint}") from None
    except (OSError, ValueError) as error:
        refuse_pointer(path)
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__} where a JSON object belongs")
    return data


def read_folder(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder.

    Keys that only the reference classes use are passed over; values that change the computation in a way the
    networks here do not follow are refused.

    Raises:
        CheckpointError: a file is missing or a value is not supported; the message names file and key.
    """
    language = read_json(folder / "vision_language_encoder" / "config.json")
    path = folder / "vision_language_encoder" / "config.json"
    text, vision, quantizer = (_section(language, key, path) for key in ("text_config", "vision_config", "vq_config"))
    rope = {**text, **(text.get("rope_parameters") or text.get("rope_scaling") or {})}
    _require(path, "text_config", rope, hidden_act="silu", rope_type="default", attention_dropout=0)
    _require(path, "vision_config", vision, hidden_act="gelu", spatial_merge_size=1, attention_dropout=0)
    _require(path, "", language, tie_word_embeddings=False)
    head_dim = text.get("head_dim")
    if head_dim and head_dim * text.get("num_attention_heads", 32) != text.get("hidden_size", 4096):
        raise CheckpointError(f"{path}: text_config.head_dim = {head_dim} is not hidden_size / num_attention_heads")
    transformer_path, vae_path = folder / "transformer" / "config.json", folder / "vae" / "config.json"
    glyph_path = folder / "text_encoder" / "config.json"
    scheduler_path = folder / "scheduler" / "scheduler_config.json"
    autoencoder, glyph = read_json(vae_path), read_json(glyph_path)
    _require(vae_path, "", autoencoder, act_fn="silu")
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
            processor=_read_processor(folder / "processor"),
        )
    except ValidationError as error:
        raise CheckpointError(f"{folder}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    marks = {"image_start_token_id": config.image_start, "image_end_token_id": config.image_start + 1}
    _require(path, "", language, **marks)
    return config


def _transformer_defaults(path: Path) -> dict[str, Any]:
    """The reference class's own defaults under what the file says."""
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


def _require(path: Path, section: str, data: Mapping[str, Any], **wanted: Any) -> None:
    for key, value in wanted.items():
        if data.get(key, value) != value:
            name = f"{section}.{key}" if section else key
            raise CheckpointError(f"{path}: {name} = {data[key]!r} is not supported, only {value!r}")


def _require_blocks(path: Path, data: Mapping[str, Any]) -> None:
    wanted = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    for key, kind in wanted.items():
        if any(block != kind for block in data.get(key, [])):
            raise CheckpointError(f"{path}: {key} = {data[key]!r} is not supported, only {kind!r} blocks")


def _read_processor(folder: Path) -> ProcessorConfig:
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        data = read_json(path)
        data = data.get("image_processor", data)
        size = data.get("size") or {}
        low, high = size.get("shortest_edge", data.get("min_pixels")), size.get("longest_edge", data.get("max_pixels"))
        if low is None or high is None:
            continue
        _require(path, "", data, patch_size=16, merge_size=1, temporal_patch_size=1)
        mean_and_std = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        _require(path, "", data, **mean_and_std)
        return ProcessorConfig(min_side=round(low**0.5), max_side=round(high**0.5))
    raise CheckpointError(f"{folder} says nothing of picture sizes (size.shortest_edge and size.longest_edge)")
