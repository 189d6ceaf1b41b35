"""What a model needs: parameters and memory of each network, from its configuration alone.

Working memory of one picture on a GPU in bf16, in bytes: keys and values, and about 34 x hidden for each token of the
prompt (autoregressive model); about 32 x hidden for each token of both branches of guidance (diffusion transformer);
four maps of the second-widest level at full size, of a tile for large pictures (autoencoder).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor, nn

from arimage.autoregressive.generation import TOKEN_BATCH
from arimage.autoregressive.layout import preview_grid, target_grid
from arimage.autoregressive.model import AutoregressiveModel
from arimage.checkpoints.components import build_autoencoder, build_glyph_encoder
from arimage.checkpoints.model_config import ModelConfig
from arimage.checkpoints.quantization import GROUP, is_quantized
from backends.private import unfilled
from decoder.autoencoder import TILE_PIXELS, TILED_ABOVE_PIXELS
from decoder.transformer import DiffusionTransformer
from tokenizer.semantic_tokenizer import SemanticTokenizer

GB = 1e9
PROMPT_TOKENS = 512
GLYPH_TOKENS = 64
INSIDE_PROMPT, INSIDE_ROW, MAPS = 34, 32, 4
RESERVE = 1.0
BF16 = 2.0
WEIGHT_BYTES = {None: BF16, "int8": 1.0, "fp8": 1.0, "int4": 0.5 + 4 / GROUP}


@dataclass(frozen=True)
class NetworkSize:
    """Parameters of a network; its weights take ``parameters * bytes per number``.

    ``quantized`` counts those that 8- and 4-bit weights shrink.
    """

    network: str
    folder: str
    parameters: int
    quantized: int = 0

    def gigabytes(self, quantized_bytes: float = BF16) -> float:
        """In bf16, with as many bytes for a quantised number."""
        return ((self.parameters - self.quantized) * BF16 + self.quantized * quantized_bytes) / GB


@dataclass(frozen=True)
class FitPlan:
    """A way to run a model on a GPU.

    Attributes:
        options: of ``arimage generate``; empty for the plain way.
        gigabytes: that it needs, reserve included.
        fits: into the memory asked about.
        costs: what it costs beside the plain way.
    """

    options: str
    gigabytes: float
    fits: bool
    costs: str


def fit_plans(config: ModelConfig, memory: float, size: int) -> list[FitPlan]:
    """Ways to make one square picture of ``size`` pixels on a GPU of ``memory`` GB, the plainest first."""
    sizes = network_sizes(config)
    work = dict(zip((one.network for one in sizes), _working_memory(config, size)))
    whole = sum(one.gigabytes() for one in sizes)
    reading = f"reads {whole:.1f} GB of weights for every call of up to {TOKEN_BATCH} pictures"
    plans = []
    for quantization, one_at_a_time in product(WEIGHT_BYTES, (False, True)):
        held = {one.network: one.gigabytes(WEIGHT_BYTES[quantization]) for one in sizes}
        needed = sum(held.values()) + max(work.values())
        options, costs = [], []
        if one_at_a_time:
            needed = max(held[network] + work[network] for network in held)
            costs.append(reading)
        if quantization is not None:
            options.append(f"--quantization {quantization}")
            costs.append(f"weights are rounded to {quantization[-1]} bits")
        if one_at_a_time:
            options.append("--placement sequential")
        needed += RESERVE
        plans.append(FitPlan(" ".join(options), needed, needed <= memory, "; ".join(costs)))
    return plans


def _working_memory(config: ModelConfig, size: int) -> Iterator[float]:
    """GB of each network beside its weights, in the order of :func:`network_sizes`."""
    target, text = target_grid(size, size), config.text_model
    tokens = PROMPT_TOKENS + target.cells + preview_grid(target).cells
    row = 2 * (4 * target.cells + GLYPH_TOKENS)
    pixels = size * size if size * size <= TILED_ABOVE_PIXELS else TILE_PIXELS**2
    yield 4 * target.cells * config.vision_encoder.hidden_size * INSIDE_PROMPT / GB
    cached = 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens
    yield (cached + PROMPT_TOKENS * text.hidden_size * INSIDE_PROMPT) / GB
    yield GLYPH_TOKENS * config.glyph_encoder.d_model * INSIDE_PROMPT / GB
    yield row * config.transformer.hidden_size * INSIDE_ROW / GB
    yield MAPS * 2 * config.autoencoder.block_out_channels[:2][-1] * pixels / GB


def network_sizes(config: ModelConfig) -> list[NetworkSize]:
    """Sizes of the five networks, in the order in which they are used; nothing is allocated."""
    with unfilled():
        networks: list[tuple[str, str, nn.Module]] = [
            (
                "semantic tokenizer",
                "vision_language_encoder",
                SemanticTokenizer(config.vision_encoder, config.quantizer),
            ),
            ("autoregressive model", "vision_language_encoder", AutoregressiveModel(config.text_model)),
            ("glyph encoder", "text_encoder", build_glyph_encoder(config)),
            ("diffusion transformer", "transformer", DiffusionTransformer(config.transformer)),
            ("autoencoder", "vae", build_autoencoder(config)),
        ]
    return [
        NetworkSize(name, folder, parameter_count(network.parameters()), _quantized(network))
        for name, folder, network in networks
    ]


def parameter_count(parameters: Iterable[Tensor]) -> int:
    """How many numbers there are in some tensors."""
    return sum(parameter.numel() for parameter in parameters)


def _quantized(network: nn.Module) -> int:
    if not isinstance(network, (AutoregressiveModel, DiffusionTransformer)):
        return 0
    return sum(module.weight.numel() for path, module in network.named_modules() if is_quantized(path, module))
