"""The dimensions of a whole model: one validated section for each network.

A YAML file holds them by the same names (``configs/nano/model.yaml``, see :mod:`arimage.yaml_files`); a checkpoint
folder holds the same numbers in the config files of the upstream classes (:mod:`arimage.checkpoints.config_files`).
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arimage.autoregressive.config import TextModelConfig
from decoder.config import TransformerConfig
from decoder.sampler import ScheduleConfig
from tokenizer.config import QuantizerConfig, VisionEncoderConfig
from tokenizer.image_size import SizeLimits


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
    """How pictures and texts become a prompt.

    Attributes:
        min_side, max_side: sizes at which reference pictures are seen, in pixels (short side at least, long side at
            most).
        text_first: the chat template puts a prompt's text before its pictures, whatever order they are given in. Then a
            reference lies at the same distance from the target in every prompt, so that its codes can be found by
            their position; after a text of any length a small model hardly learns to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_side: int = Field(512, ge=32)
    max_side: int = Field(2048, ge=32)
    text_first: bool = False

    @property
    def limits(self) -> SizeLimits:
        """The same as the rule of sizes takes them."""
        return SizeLimits(self.min_side, self.max_side)


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
