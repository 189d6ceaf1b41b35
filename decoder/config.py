"""Dimensions of the diffusion transformer, with the key names of the checkpoint's ``transformer/config.json``."""

from pydantic import BaseModel, ConfigDict, Field

PIXELS_PER_LATENT = 8


class TransformerConfig(BaseModel):
    """Defaults are those of the released 7B decoder (hidden size = heads × head dim = 4096)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch_size: int = Field(2, ge=1)
    in_channels: int = Field(16, ge=1)
    out_channels: int = Field(16, ge=1)
    num_layers: int = Field(30, ge=1)
    attention_head_dim: int = Field(128, ge=4, multiple_of=4)
    num_attention_heads: int = Field(32, ge=1)
    text_embed_dim: int = Field(1472, ge=1, description="width of the glyph encoder's output")
    time_embed_dim: int = Field(512, ge=2)
    condition_dim: int = Field(256, ge=2)
    prior_vq_quantizer_codebook_size: int = Field(16384, ge=2)

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim
