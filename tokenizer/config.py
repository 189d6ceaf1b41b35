"""Dimensions of the semantic tokenizer, with the key names of the GLM-Image checkpoint's ``config.json``."""

from pydantic import BaseModel, ConfigDict, Field


class VisionEncoderConfig(BaseModel):
    """The vision transformer (``vision_config``). Defaults are those of the released 9B checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int = Field(40, ge=1)
    hidden_size: int = Field(1536, ge=1)
    num_heads: int = Field(16, ge=1)
    intermediate_size: int = Field(6144, ge=1)
    in_channels: int = Field(3, ge=1)
    image_size: int = Field(2048, ge=16, description="side in pixels that the learned positions cover")
    patch_size: int = Field(16, ge=1)
    layer_norm_eps: float = 1e-6
    attention_bias: bool = True


class QuantizerConfig(BaseModel):
    """The cosine vector quantiser (``vq_config``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_embeddings: int = Field(16384, ge=2, description="codes in the codebook")
    embed_dim: int = Field(2048, ge=1)
    latent_channels: int = Field(1536, ge=1, description="hidden size of the vision encoder")
