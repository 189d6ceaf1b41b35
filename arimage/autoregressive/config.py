"""Dimensions of the autoregressive model, with the key names of the checkpoint's ``text_config``."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TextModelConfig(BaseModel):
    """The GLM text model with vision words. Defaults are those of the released 9B checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(168064, ge=2, description="rows of the embedding: vision words, then text")
    vision_vocab_size: int = Field(16512, ge=2, description="vision words, and rows of the output head")
    hidden_size: int = Field(4096, ge=1)
    intermediate_size: int = Field(13696, ge=1)
    num_hidden_layers: int = Field(40, ge=1)
    num_attention_heads: int = Field(32, ge=1)
    num_key_value_heads: int = Field(2, ge=1)
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    max_position_embeddings: int = 131072
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.5
    mrope_section: tuple[int, int, int] = (8, 12, 12)
    pad_token_id: int = 167841

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _consistent(self) -> "TextModelConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        rotary = int(self.head_dim * self.partial_rotary_factor) // 2
        if sum(self.mrope_section) != rotary:
            raise ValueError(f"mrope_section must add up to half the rotary dims ({rotary})")
        return self
