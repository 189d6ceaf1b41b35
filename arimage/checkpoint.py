"""The GLM-Image checkpoint folder, read and written.

    checkpoint = Checkpoint.open("path/to/folder")
    transformer = checkpoint.transformer(device=torch.device("cpu"), dtype=torch.float32)

Opening reads configuration only. Each network is built on the meta device and filled from safetensors when it is
asked for. :func:`save_checkpoint` writes a folder that the unmodified ``GlmImagePipeline`` opens.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arimage.autoregressive.model import AutoregressiveModel
from arimage.autoregressive.sampling import TokenSampling
from arimage.configuration import ModelConfig, read_folder, read_json
from arimage.errors import CheckpointError, nearest
from arimage.hub import find, repository
from arimage.text_tokenizer import TextTokenizer, read_text_tokenizer
from arimage.weights import WeightFiles, fill, unfilled, visible
from decoder.autoencoder import Autoencoder
from decoder.glyph import GlyphEncoder
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
MAX_SHARD_SIZE = "5GB"
SAMPLING = (
    *("token_guidance" if field.name == "guidance" else field.name for field in fields(TokenSampling)),
    "preview_grid",
)


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
    def sampling(self) -> dict[str, float]:
        """How this model's tokens are best drawn (``temperature``, ``top_p``, ...), where it differs from the format.

        Raises:
            CheckpointError: it names something else than the options of :class:`TokenSampling` and ``preview_grid``.
        """
        given = dict((self._index.get(OUR_KEY) or {}).get("sampling") or {})
        for option in given:
            if option not in SAMPLING:
                raise CheckpointError(
                    f"{self.path / 'model_index.json'}: {OUR_KEY}.sampling names {option!r}{nearest(option, SAMPLING)}"
                )
        return given

    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer of prompts."""
        return read_text_tokenizer(self.path / "processor", self.config)

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


def build_autoencoder(config: ModelConfig) -> nn.Module:
    """The reference class of the autoencoder, with its own initialisation."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**config.autoencoder.arguments())


def build_glyph_encoder(config: ModelConfig) -> Any:
    """The reference class of the glyph encoder, with its own initialisation."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**config.glyph_encoder.model_dump(), is_encoder_decoder=False, use_cache=False))


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
    sampling: Mapping[str, float] | None = None,
) -> Path:
    """Write a checkpoint folder that the unmodified ``GlmImagePipeline.from_pretrained`` opens.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Args:
        states: for each component its tensors by name; they are cast shard by shard while they are written.
        tokenizer: the contents of ``tokenizer.json``.
        random: the weights were never trained; pictures will say so.
        name: what to call the model.
        sampling: how its tokens are best drawn, see :attr:`Checkpoint.sampling`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    _check_states(config, states)
    ours: dict[str, Any] = {"name": name or Path(path).name, "random": random}
    with replaced_when_whole(Path(path)) as folder:
        write_configuration(folder, config, tokenizer, dtype, ours | ({"sampling": dict(sampling)} if sampling else {}))
        for component in COMPONENTS:
            _write_weights(folder / component, WEIGHT_NAMES[component], states[component], dtype, max_shard_size)
    return Path(path)


def write_configuration(
    folder: Path, config: ModelConfig, tokenizer: Mapping[str, Any], dtype: torch.dtype, ours: Mapping[str, Any]
) -> None:
    """Write all files of a checkpoint folder but the weights; ``ours`` is what no other program reads."""
    _write_json(folder / "model_index.json", {**MODEL_INDEX, OUR_KEY: dict(ours)})
    placeholder = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|image|>")
    for place, contents in _config_files(config, dtype, placeholder).items():
        _write_json(folder / place, contents)
    _write_tokenizers(folder, config, tokenizer)


def update_checkpoint(
    source: Checkpoint,
    path: str | os.PathLike[str],
    states: Mapping[Component, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype = torch.bfloat16,
    random: bool = False,
    config: ModelConfig | None = None,
    name: str | None = None,
    sampling: Mapping[str, float] | None = None,
) -> Path:
    """Write a folder like ``source`` with some tensors replaced; the others are copied from it."""
    merged = {
        component: {**_Lazy(WeightFiles(source.path / component)).tensors(), **states.get(component, {})}
        for component in COMPONENTS
    }
    tokenizer = source.text_tokenizer().definition
    config = config or source.config
    return save_checkpoint(
        path, config, merged, tokenizer, dtype=dtype, random=random, name=name or source.name,
        sampling=source.sampling if sampling is None else sampling,
    )  # fmt: skip


class _Lazy:
    """All tensors of a component; they stay mapped to the file until they are used."""

    def __init__(self, weights: WeightFiles) -> None:
        self.weights = weights

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.weights.read(self.weights.names))


def _check_states(config: ModelConfig, states: Mapping[Component, Mapping[str, Tensor]]) -> None:
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


@contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config_files(config: ModelConfig, dtype: torch.dtype, placeholder: int) -> dict[str, dict[str, Any]]:
    """The config files of the reference classes, by their place in the folder."""
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


def _write_tokenizers(folder: Path, config: ModelConfig, tokenizer: Mapping[str, Any]) -> None:
    from tokenizers import Tokenizer
    from transformers import ByT5Tokenizer, GlmImageProcessor, PreTrainedTokenizerFast
    from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

    start = f"<|dit_token_{config.image_start}|>"
    end = f"<|dit_token_{config.image_start + 1}|>"
    names = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    text = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)),
        bos_token=start,
        eos_token=end,
        pad_token=names[config.text_model.pad_token_id],
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
        clean_up_tokenization_spaces=False,
    )
    images = GlmImageImageProcessorPil(
        patch_size=16,
        merge_size=1,
        temporal_patch_size=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": config.processor.min_side**2, "longest_edge": config.processor.max_side**2},
    )
    template = (
        "{%- for message in messages -%}"
        "{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- else -%}{%- for item in message['content'] -%}"
        "{%- if item['type'] == 'image' -%}" + start + "<|image|>" + end + "{%- elif item['type'] == 'text' -%}"
        "{{ item['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
    )
    GlmImageProcessor(images, text, chat_template=template).save_pretrained(folder / "processor")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")


def _write_weights(
    folder: Path, stem: str, state: Mapping[str, Tensor], dtype: torch.dtype, max_shard_size: int | str
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    kept = {name: tensor for name, tensor in state.items() if T5_ALIASES.get(name) not in state}
    narrowed = {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in kept.items()}
    shards = split_torch_state_dict_into_shards(
        narrowed, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=max_shard_size
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in shards.filename_to_tensors.items():
        shard = {name: kept[name].detach().to("cpu", dtype).contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        _write_json(folder / f"{stem}.safetensors.index.json", index)
