"""A model of any size with random weights, in memory only: as our networks, and as upstream with the same tensors.

Speed does not depend on what weights are, as long as they are not zeros; pictures are noise.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arimage.checkpoints.bpe import DEFAULT_CORPUS, train_tokenizer
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.components import Component, meta_networks
from arimage.checkpoints.config_files import write_configuration
from arimage.checkpoints.initialization import with_pad
from arimage.checkpoints.model_config import ModelConfig
from arimage.inference.engine import Engine
from arimage.inference.networks import NetworkName, Networks
from arimage.inference.requests import ImageRequest
from arimage.inference.settings import Settings
from backends.private import unfilled
from decoder.diffusion_decoder import DecoderSettings

NETWORKS: tuple[NetworkName, ...] = (
    "semantic_tokenizer", "autoregressive", "glyph_encoder", "transformer", "autoencoder",
)  # fmt: skip
LANGUAGE = "vision_language_encoder"
DEVIATION = 0.05


class DrawnWeights:
    """Takes the place of :class:`arimage.checkpoints.weights.WeightFiles`: tensors are drawn instead of read.

    A tensor depends on its name alone. Matrices have a variance of one over their inputs, norms lie around one and
    biases around zero, so that layers keep the scale of what they are given and nothing overflows.
    """

    def __init__(
        self, folder: Path, shapes: Mapping[str, torch.Size], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.folder, self.shapes, self.device, self.dtype = folder, shapes, device, dtype

    @property
    def names(self) -> set[str]:
        return set(self.shapes)

    def file_of(self, name: str) -> Path:
        return self.folder / name

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, self._draw(name, self.shapes[name])

    def _draw(self, name: str, shape: torch.Size) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        tensor = torch.empty(shape, device=self.device, dtype=self.dtype)
        if tensor.ndim > 1:
            return tensor.normal_(std=math.prod(shape[1:]) ** -0.5, generator=generator)
        return tensor.normal_(mean=float(name.endswith("weight")), std=DEVIATION, generator=generator)


class DrawnCheckpoint(Checkpoint):
    """A folder without weights, as :func:`write_folder` writes it; they are drawn when a network is asked for."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        opened = Checkpoint.open(folder)
        super().__init__(folder, opened.config, opened._index)
        self.device, self.dtype = device, dtype

    def _weights(self, component: Component) -> Any:
        with unfilled():
            state = meta_networks(self.config)[component].state_dict()
        shapes = {name: tensor.shape for name, tensor in state.items()}
        return DrawnWeights(self.path / component, shapes, self.device, self.dtype)


def write_folder(folder: Path, config: ModelConfig, dtype: torch.dtype) -> Path:
    """Everything of a checkpoint but its weights; the tokenizer knows a few words and leaves most rows unused."""
    text = config.text_model
    definition = train_tokenizer(DEFAULT_CORPUS, text.vision_vocab_size, text.vocab_size)
    config = with_pad(config, definition)
    write_configuration(folder, config, definition, dtype, {"name": "drawn", "random": True})
    return folder


def load_all(networks: Networks) -> dict[NetworkName, int]:
    """Have every network drawn and laid out to run; how many parameters each has."""
    counts = {}
    for name in NETWORKS:
        with networks.use(name) as network:
            counts[name] = sum(parameter.numel() for parameter in network.parameters())
    return counts


def open_upstream(networks: Networks) -> Any:
    """Upstream's pipeline with the parameters of networks that are loaded."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    folder = networks.checkpoint.path

    def read(kind: Any, component: str) -> Any:
        return kind.from_pretrained(folder / component)

    def built(kind: Any, component: str) -> Any:
        return kind.from_config(kind.load_config(folder / component))

    with init_empty_weights():
        language = transformers.GlmImageForConditionalGeneration(read(transformers.GlmImageConfig, LANGUAGE))
        parts = {
            LANGUAGE: language,
            "text_encoder": transformers.T5EncoderModel(read(transformers.T5Config, "text_encoder")),
            "transformer": built(diffusers.GlmImageTransformer2DModel, "transformer"),
            "vae": built(diffusers.AutoencoderKL, "vae"),
        }
    language.generation_config = read(transformers.GenerationConfig, LANGUAGE)
    for component, ours in parts_of(networks).items():
        give_parameters(parts[component], ours, networks.device)
    return diffusers.GlmImagePipeline.from_pretrained(folder, **parts)


def parts_of(networks: Networks) -> dict[str, list[nn.Module]]:
    """The loaded networks that make up each component, under upstream's names for parameters."""
    loaded = networks._loaded
    return {
        LANGUAGE: [loaded["autoregressive"], loaded["semantic_tokenizer"]],
        "text_encoder": [loaded["glyph_encoder"].encoder],
        "transformer": [loaded["transformer"]],
        "vae": [loaded["autoencoder"].network],
    }


def give_parameters(network: nn.Module, ours: Sequence[nn.Module], device: torch.device) -> None:
    """Give a network on the meta device our networks' parameters, by name.

    They are the very same parameters, in memory once. Only what ours lays out as upstream never would (on a CPU
    for oneDNN) is copied into the usual layout.
    """
    usual = {
        name: kept if kept.is_contiguous() else nn.Parameter(kept.contiguous(), requires_grad=False)
        for one in ours
        for name, kept in one.named_parameters(remove_duplicate=False)
    }
    network.requires_grad_(False)
    network.load_state_dict(usual, assign=True)
    network.to(device).eval()


def check_alive(engine: Engine, side: int = 256) -> None:
    """Decode random tokens to a small picture.

    Raises:
        RuntimeError: it is flat, as it is when something overflows.
    """
    grid = (side // 32, side // 32)
    tokens = torch.randint(engine.config.quantizer.num_embeddings, grid)
    request = ImageRequest("a sign", (side, side), seed=0, codes=tokens)
    picture = engine.run([request], Settings(DecoderSettings(steps=2)))[0].image
    if np.asarray(picture).std() < 1:
        raise RuntimeError("the drawn weights make a flat picture: something overflows, and times would mean nothing")
