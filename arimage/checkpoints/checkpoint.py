"""The GLM-Image checkpoint folder, read and written.

    checkpoint = Checkpoint.open("path/to/folder")
    transformer = checkpoint.transformer(device=torch.device("cpu"), dtype=torch.float32)

Opening reads configuration only. Each network is built on the meta device and filled from safetensors when it is
asked for. :func:`save_checkpoint` writes a folder that the unmodified ``GlmImagePipeline`` opens.
"""

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arimage.autoregressive.model import AutoregressiveModel
from arimage.autoregressive.vocabulary import Vocabulary
from arimage.checkpoints.components import (
    COMPONENTS,
    MODEL_INDEX,
    OUR_KEY,
    T5_ALIASES,
    WEIGHT_NAMES,
    Component,
    build_autoencoder,
    build_glyph_encoder,
    check_states,
)
from arimage.checkpoints.config_files import read_folder, write_configuration
from arimage.checkpoints.hub import find, repository
from arimage.checkpoints.json_files import read_json
from arimage.checkpoints.model_config import ModelConfig
from arimage.checkpoints.processor import read_text_tokenizer
from arimage.checkpoints.text_tokenizer import TextTokenizer
from arimage.checkpoints.weights import WeightFiles, fill, visible, write_weights
from arimage.errors import CheckpointError, nearest
from arimage.files import replaced_when_whole
from arimage.options import WITH_REFERENCES, options_of_models
from backends.private import unfilled
from decoder.autoencoder import Autoencoder
from decoder.glyph import GlyphEncoder
from decoder.transformer import DiffusionTransformer
from tokenizer.semantic_tokenizer import SemanticTokenizer

MAX_SHARD_SIZE = "5GB"


class Checkpoint:
    """A checkpoint folder whose configuration has been read and found right.

    Attributes:
        path: the folder.
        config: dimensions of all networks.
    """

    def __init__(self, path: Path, config: ModelConfig, index: Mapping[str, Any]) -> None:
        self.path, self.config = path, config
        self._index = index

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Read a folder's configuration.

        Args:
            path: the folder, or ``owner/name`` of a repository of the Hugging Face hub that is in the local cache.

        Raises:
            CheckpointError: it is no GLM-Image checkpoint, or asks for something that is not supported.
        """
        folder = find(path, "a folder")
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; a checkpoint is a folder with a model_index.json in it")
        index = read_json(folder / "model_index.json")
        if index.get("_class_name") != MODEL_INDEX["_class_name"]:
            raise CheckpointError(
                f"{folder / 'model_index.json'}: _class_name is {index.get('_class_name')!r}; only "
                f"{MODEL_INDEX['_class_name']!r} folders are supported"
            )
        for component in MODEL_INDEX:
            if component != "_class_name" and component not in index:
                raise CheckpointError(f"{folder / 'model_index.json'}: the key {component!r} is missing")
        return cls(folder, read_folder(folder), index)

    @property
    def is_random(self) -> bool:
        """Whether the folder says that its weights were never trained."""
        return bool((self._index.get(OUR_KEY) or {}).get("random"))

    @property
    def name(self) -> str:
        """What to call the model: the folder says it, or it is the repository's or the folder's own name."""
        return (self._index.get(OUR_KEY) or {}).get("name") or repository(self.path) or self.path.resolve().name

    @property
    def sampling(self) -> dict[str, Any]:
        """How this model is best sampled (``temperature``, ``top_p``, ...), where it differs from the format;
        under ``with_references`` what differs once more for pictures with references.

        Raises:
            CheckpointError: it names something else than :func:`arimage.options.options_of_models`.
        """
        given = dict((self._index.get(OUR_KEY) or {}).get("sampling") or {})
        allowed = options_of_models()
        for option in (*(name for name in given if name != WITH_REFERENCES), *given.get(WITH_REFERENCES, ())):
            if option not in allowed:
                raise CheckpointError(
                    f"{self.path / 'model_index.json'}: {OUR_KEY}.sampling names {option!r}{nearest(option, allowed)}"
                )
        return given

    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer of prompts."""
        return read_text_tokenizer(self.path / "processor", self.config)

    def vocabulary(self) -> Vocabulary:
        """Which token ids mean what, with the encoding of prompts."""
        text = self.text_tokenizer()
        return Vocabulary(
            codebook_size=self.config.quantizer.num_embeddings,
            image_start=text.image_start,
            image_end=text.image_end,
            grid_start=text.sop,
            grid_end=text.eop,
            pad=text.pad,
            encode=text.encode,
            prefix=text.prefix_ids,
            text_first=self.config.processor.text_first,
        )

    def semantic_tokenizer(self, device: torch.device, dtype: torch.dtype) -> SemanticTokenizer:
        """Vision encoder and quantiser."""
        with unfilled():
            network = SemanticTokenizer(self.config.vision_encoder, self.config.quantizer)
            others = AutoregressiveModel(self.config.text_model).state_dict()
        return fill(network, self._weights("vision_language_encoder"), device, dtype, others)

    def autoregressive(self, device: torch.device, dtype: torch.dtype) -> AutoregressiveModel:
        """The autoregressive model."""
        with unfilled():
            network = AutoregressiveModel(self.config.text_model)
            others = SemanticTokenizer(self.config.vision_encoder, self.config.quantizer).state_dict()
        return fill(network, self._weights("vision_language_encoder"), device, dtype, others)

    def transformer(self, device: torch.device, dtype: torch.dtype) -> DiffusionTransformer:
        """The diffusion transformer."""
        with unfilled():
            network = DiffusionTransformer(self.config.transformer)
        return fill(network, self._weights("transformer"), device, dtype)

    def autoencoder(self, device: torch.device, dtype: torch.dtype) -> Autoencoder:
        """The latent autoencoder; in fp32 where half precision would overflow."""
        with unfilled():
            network = build_autoencoder(self.config)
        wide = dtype == torch.float16 or self.config.autoencoder.force_upcast
        return Autoencoder(fill(network, self._weights("vae"), device, torch.float32 if wide else dtype)).eval()

    def glyph_encoder(self, device: torch.device, dtype: torch.dtype) -> GlyphEncoder:
        """The glyph encoder."""
        with unfilled():
            network = build_glyph_encoder(self.config)
        fill(network, self._weights("text_encoder"), device, dtype, aliases=T5_ALIASES)
        network.set_input_embeddings(network.shared)
        return GlyphEncoder(network).eval()

    def weights_hash(self) -> str:
        """SHA-256 over the contents of all weight files, in the order of their names (hex)."""
        return self._weights_hash

    @cached_property
    def _weights_hash(self) -> str:
        digest = hashlib.sha256()
        for component in sorted(COMPONENTS):
            for file in visible(self.path / component, "*.safetensors"):
                digest.update(f"{component}/{file.name}:".encode())
                with file.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    def _weights(self, component: Component) -> WeightFiles:
        return WeightFiles(self.path / component)


def save_checkpoint(
    path: str | os.PathLike[str],
    config: ModelConfig,
    states: Mapping[Component, Mapping[str, Tensor]],
    tokenizer: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    random: bool = False,
    name: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint folder that the unmodified ``GlmImagePipeline.from_pretrained`` opens.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Args:
        states: for each component its tensors by name; they are cast shard by shard while they are written.
        tokenizer: the contents of ``tokenizer.json``.
        random: the weights were never trained; pictures will say so.
        name: what to call the model.
        sampling: how it is best sampled, see :attr:`Checkpoint.sampling`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    check_states(config, states)
    ours: dict[str, Any] = {"name": name or Path(path).name, "random": random}
    with replaced_when_whole(Path(path)) as folder:
        write_configuration(folder, config, tokenizer, dtype, ours | ({"sampling": dict(sampling)} if sampling else {}))
        for component in COMPONENTS:
            write_weights(folder / component, WEIGHT_NAMES[component], states[component], dtype, max_shard_size)
    return Path(path)


def update_checkpoint(
    source: Checkpoint,
    path: str | os.PathLike[str],
    states: Mapping[Component, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype = torch.bfloat16,
    random: bool = False,
    config: ModelConfig | None = None,
    name: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder like ``source`` with some tensors replaced; the others are copied from it."""
    merged = {
        component: {**_mapped_tensors(source.path / component), **states.get(component, {})} for component in COMPONENTS
    }
    tokenizer = source.text_tokenizer().definition
    config = config or source.config
    return save_checkpoint(
        path, config, merged, tokenizer, dtype=dtype, random=random, name=name or source.name,
        sampling=source.sampling if sampling is None else sampling,
    )  # fmt: skip


def _mapped_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a component; they stay mapped to the file until they are used."""
    weights = WeightFiles(folder)
    return dict(weights.read(weights.names))
