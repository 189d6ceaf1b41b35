"""Files of adapters (LoRA), read from what people have.

Read are folders of ``peft``, files of ``diffusers`` (``transformer.`` before every name, settings in the file's
metadata) and files with ``lora_down`` / ``lora_up`` / ``alpha``. Every tensor and every setting is applied or refused
by name: rank-stabilised scales (arXiv:2312.03732), magnitudes (DoRA, arXiv:2402.09353), biases, whole layers.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from arimage.autoregressive.model import AutoregressiveModel
from arimage.checkpoints.adapters import Adapters, LowRank
from arimage.checkpoints.hub import find, refuse_pointer
from arimage.checkpoints.json_files import read_json
from arimage.checkpoints.model_config import ModelConfig
from arimage.checkpoints.weights import UNSAFE_SUFFIXES, visible
from arimage.errors import CheckpointError, UsageError
from backends.private import unfilled
from decoder.transformer import DiffusionTransformer

ADAPTER_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_FILE, DIFFUSERS_METADATA = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"
PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
PREFIXES = ("", DIFFUSERS_PREFIX, "vision_language_encoder.", "diffusion_model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
LoraInput = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]
_KEY = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_embedding_[AB]|lora_[AB]|lora_down|lora_up|lora\.down|lora\.up"
    r"|lora_magnitude_vector|dora_scale|alpha)(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<leaf>weight|bias))?"
)
_PARTS = {
    "lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_embedding_A": "down",
    "lora_B": "up", "lora_up": "up", "lora.up": "up", "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude", "dora_scale": "magnitude", "alpha": "alpha",
}  # fmt: skip
# Settings of peft that say how a model is trained or prepared; with the tensors in hand they change nothing.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_bias",
    "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type", "_arimage_network",
}  # fmt: skip
_UNDERSTOOD = {
    "alpha_pattern", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_dora", "use_rslora",
}  # fmt: skip
# Those that leave the weights beside the adapter as they are.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def lora_inputs(lora: LoraInput | Sequence[LoraInput] | None) -> list[LoraInput]:
    """Adapters one by one, where one alone may stand for a list of one."""
    if lora is None:
        return []
    if isinstance(lora, (str, os.PathLike)):
        return [lora]
    if isinstance(lora, tuple) and len(lora) == 2 and isinstance(lora[1], (int, float)):
        return [cast("LoraInput", lora)]
    if not isinstance(lora, Sequence):
        raise UsageError(f"lora takes paths of adapters, got {type(lora).__name__}")
    return cast("list[LoraInput]", list(lora))


def parse_lora(source: LoraInput) -> tuple[Path, float]:
    """Where adapters are and how strongly they are applied: a path, (path, strength) or ``"path:0.8"``.

    Only a number behind the last colon is a strength, and only where nothing has that very name.

    Raises:
        UsageError: it is something else, or the strength is 0 or not finite.
    """
    path, strength = source if isinstance(source, tuple) and len(source) == 2 else (source, 1.0)
    if not isinstance(path, (str, os.PathLike)) or isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise UsageError(f"lora takes a path, (path, strength) or 'path:strength'; got {source!r:.80}")
    text = os.fspath(path)
    front, _, number = text.rpartition(":")
    if path is source and front and not os.path.exists(text):
        with suppress(ValueError):
            text, strength = front, float(number)
    if not math.isfinite(strength) or strength == 0:
        raise UsageError(f"lora {text}: the strength must be a finite number other than 0, got {strength}")
    return Path(text), float(strength)


def read_adapters(source: LoraInput, config: ModelConfig) -> Adapters:
    """Read adapters for the autoregressive model, the diffusion transformer or both.

    Args:
        source: a folder or file, with its strength, see :func:`parse_lora`; a name such as ``owner/name`` is looked
            up in the local cache of the Hugging Face hub.
        config: of the checkpoint that they are for.

    Raises:
        UsageError: the strength is wrong.
        CheckpointError: there are none, they are damaged, do not fit the checkpoint, change nothing, or hold something
            that cannot be applied; the message names the file, and the tensor or setting in it.
    """
    path, strength = parse_lora(source)
    file, others = _find(path)
    tensors, settings, digest = _read(file)
    layers, values = _understand(file, tensors, settings, _shapes(config))
    for other in others:
        same = _read(other)
        if not _alike((layers, values), _understand(other, same[0], same[1], _shapes(config))):
            raise CheckpointError(f"{file} and {other.name} beside it hold different adapters; name the file to use")
    if not layers and not values:
        raise CheckpointError(f"{file} holds no adapters")
    if not values and not any(layer.changes() for layer in layers.values()):
        raise CheckpointError(f"{file} changes nothing: its products are all zero; was it trained?")
    return Adapters(file, digest, strength, layers, values)


def _find(path: Path) -> tuple[Path, list[Path]]:
    """The file that holds the adapters, and others that should hold the same."""
    path = find(path, "a folder or file of adapters")
    if path.is_file():
        if path.suffix in UNSAFE_SUFFIXES:
            raise CheckpointError(f"{path} can run code when it is opened and is not read; convert it to safetensors")
        return path, []
    known = [path / name for name in (ADAPTER_FILE, DIFFUSERS_FILE) if (path / name).exists()]
    if known:
        return known[0], known[1:]
    files = visible(path, "*.safetensors")
    if len(files) == 1:
        return files[0], []
    if files:
        raise CheckpointError(f"{path} holds {files[0].name}, {files[1].name}, ...: name the file of the adapters")
    unsafe = [file.name for file in visible(path, "*") if file.suffix in UNSAFE_SUFFIXES]
    if unsafe:
        raise CheckpointError(
            f"{path} holds {unsafe[0]}, which can run code when it is opened and is not read; convert it to safetensors"
        )
    raise CheckpointError(f"{path} holds no adapters: neither {ADAPTER_FILE} nor {DIFFUSERS_FILE} is there")


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, str]:
    """Tensors, settings (None without any) and the hash of both."""
    from safetensors import SafetensorError, safe_open

    settings = None
    digest = hashlib.sha256()
    if file.name == ADAPTER_FILE:
        settings = read_json(file.parent / CONFIG_FILE)
        digest.update((file.parent / CONFIG_FILE).read_bytes())
    refuse_pointer(file)
    try:
        digest.update(file.read_bytes())
        with safe_open(file, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no dict)
            metadata = handle.metadata() or {}
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from None
    if settings is None and DIFFUSERS_METADATA in metadata:
        try:
            packed = json.loads(metadata[DIFFUSERS_METADATA])
            prefixes = (DIFFUSERS_PREFIX, PEFT_PREFIX, "")
            prefix = next(one for one in prefixes if any(name.startswith(one) for name in packed) or not one)
            settings = {name.removeprefix(prefix): value for name, value in packed.items() if name.startswith(prefix)}
        except (ValueError, AttributeError):
            raise CheckpointError(f"{file}: its {DIFFUSERS_METADATA} is no JSON object") from None
    return tensors, settings, digest.hexdigest()


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters that adapters may change; the two networks have no name in common."""
    with unfilled():
        networks = (AutoregressiveModel(config.text_model), DiffusionTransformer(config.transformer))
    return {name: tuple(value.shape) for network in networks for name, value in network.named_parameters()}


def _understand(
    file: Path, tensors: Mapping[str, Tensor], settings: dict[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Every tensor as what it is: parts of layers, or the new value of a parameter."""
    if settings is not None:
        _check_settings(file, settings)
    names = _Names(file, shapes)
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}
    values: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{file}: the tensor {key!r} holds something else than finite numbers")
        match = _KEY.fullmatch(key)
        if match is None:
            values[names.parameter(key, tensor)] = tensor
            continue
        part = _PARTS[match["part"]] + ("_bias" if match["leaf"] == "bias" else "")
        layer = names.layer(match["layer"], key)
        if part in parts.setdefault(layer, {}):
            raise CheckpointError(f"{file}: {key!r} and {parts[layer][part][0]!r} are two adapters of one layer")
        parts[layer][part] = key, tensor
    layers = {name: _layer(file, name, found, settings, shapes) for name, found in parts.items()}
    whole = all(layer.magnitude is not None for layer in layers.values())
    if settings is not None and settings.get("use_dora") and not whole:
        raise CheckpointError(f"{file}: its settings say use_dora, but there are layers without lora_magnitude_vector")
    return layers, values


class _Names:
    """The parameters of a checkpoint, by whatever name a file gives them."""

    def __init__(self, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.file, self.shapes = file, shapes
        self.layers = {name.removesuffix(".weight") for name in shapes if name.endswith(".weight")}
        self.flat = {name.replace(".", "_"): name for name in self.layers}

    def layer(self, given: str, key: str) -> str:
        """The layer that an adapter is for.

        Raises:
            CheckpointError: there is none.
        """
        for prefix in FLAT_PREFIXES:
            if given.startswith(prefix) and given.removeprefix(prefix) in self.flat:
                return self.flat[given.removeprefix(prefix)]
        for name in _shorter(given):
            if name in self.layers:
                return name
        raise self._unknown(key)

    def parameter(self, key: str, tensor: Tensor) -> str:
        """The parameter that a tensor is the new value of.

        Raises:
            CheckpointError: there is none, or it has another shape.
        """
        for name in _shorter(key.replace(".base_layer.", ".")):
            if name in self.shapes:
                if self.shapes[name] != tuple(tensor.shape):
                    raise CheckpointError(
                        f"{self.file}: the tensor {key!r} has shape {tuple(tensor.shape)}, "
                        f"this checkpoint's {self.shapes[name]}"
                    )
                return name
        raise self._unknown(key)

    def _unknown(self, key: str) -> CheckpointError:
        example = next(name for name in self.layers if name.endswith("attn1.to_q"))
        return CheckpointError(
            f"{self.file}: the tensor {key!r} is nothing that can be applied to this checkpoint; adapters are lora_A "
            f"and lora_B, or lora_down and lora_up, of layers of its two large networks, such as {example!r}"
        )


def _shorter(name: str) -> list[str]:
    """A name without what libraries put before it."""
    name = name.removeprefix(PEFT_PREFIX)
    return [name.removeprefix(prefix) for prefix in PREFIXES]


def _layer(
    file: Path,
    name: str,
    found: Mapping[str, tuple[str, Tensor]],
    settings: Mapping[str, Any] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> LowRank:
    for missing, other in (("down", "up"), ("up", "down")):
        if missing not in found:
            key = found[other][0] if other in found else next(iter(found.values()))[0]
            raise CheckpointError(f"{file}: {key!r} has no {'lora_B' if missing == 'up' else 'lora_A'} beside it")
    (key, down), (_, up) = found["down"], found["up"]
    embedding = "lora_embedding" in key
    shape = shapes[f"{name}.weight"][::-1] if embedding else shapes[f"{name}.weight"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or (len(up), down.shape[1]) != shape:
        raise CheckpointError(
            f"{file}: the adapter {key!r} of {tuple(up.shape)} by {tuple(down.shape)} does not fit this checkpoint's "
            f"layer of {shape}"
        )
    for part in found.keys() - {"down", "up", "up_bias", "magnitude", "alpha"}:
        raise CheckpointError(f"{file}: the tensor {found[part][0]!r} cannot be applied")
    bias = found["up_bias"][1] if "up_bias" in found else None
    if bias is not None and (bias.shape != up.shape[:1] or f"{name}.bias" not in shapes):
        raise CheckpointError(f"{file}: {found['up_bias'][0]!r} is for a layer without a bias of that shape")
    magnitude = found["magnitude"][1] if "magnitude" in found else None
    if magnitude is not None and magnitude.shape not in ((len(up),), (len(up), 1), (1, down.shape[1])):
        raise CheckpointError(f"{file}: {found['magnitude'][0]!r} has shape {tuple(magnitude.shape)}")
    scale = _scale(file, name, len(down), settings, found["alpha"][1] if "alpha" in found else None)
    return LowRank(down, up, scale, bias, magnitude, embedding)


def _scale(file: Path, name: str, rank: int, settings: Mapping[str, Any] | None, alpha: Tensor | None) -> float:
    """What the product is multiplied by: alpha / rank, or alpha / sqrt(rank) where the settings say ``use_rslora``."""
    if settings is None or "lora_alpha" not in settings:
        if settings is not None and file.name == ADAPTER_FILE:
            raise CheckpointError(f"{file.parent / CONFIG_FILE}: r and lora_alpha must be numbers")
        if alpha is not None and alpha.numel() != 1:
            raise CheckpointError(f"{file}: the alpha of {name!r} is no single number")
        return 1.0 if alpha is None else float(alpha) / rank
    if alpha is not None:
        raise CheckpointError(f"{file}: {name!r} has an alpha of its own and one in the settings")
    try:
        said = int(_by_pattern(settings.get("rank_pattern"), name, settings["r"]))
        factor = float(_by_pattern(settings.get("alpha_pattern"), name, settings["lora_alpha"]))
    except (KeyError, TypeError, ValueError, AttributeError, re.error):
        raise CheckpointError(f"{_place(file)}: r and lora_alpha must be numbers, patterns name numbers") from None
    if said != rank:
        raise CheckpointError(f"{file}: the adapter of {name!r} has rank {rank}, its settings say {said}")
    return factor / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """What a layer gets from ``rank_pattern`` or ``alpha_pattern``: of the first pattern that its name ends with."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings under which the tensors mean something else.

    Raises:
        CheckpointError: the message names the setting.
    """
    if settings.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{_place(file)}: peft_type is {settings['peft_type']!r}; only 'LORA' can be applied")
    if settings.get("init_lora_weights") not in _INITIALISATIONS:
        raise CheckpointError(
            f"{_place(file)}: init_lora_weights = {settings['init_lora_weights']!r} changed the weights beside the "
            "adapter; save it with peft's path_initial_model_for_weight_conversion"
        )
    for name, value in settings.items():
        if name not in _WITHOUT_EFFECT | _UNDERSTOOD and value not in (None, False, "", [], {}):
            raise CheckpointError(f"{_place(file)}: {name} = {value!r:.80} cannot be applied")


def _place(file: Path) -> Path:
    """Where a file's settings are."""
    return file.parent / CONFIG_FILE if file.name == ADAPTER_FILE else file


def _alike(
    one: tuple[Mapping[str, LowRank], Mapping[str, Tensor]], other: tuple[Mapping[str, LowRank], Mapping[str, Tensor]]
) -> bool:
    if any(a.keys() != b.keys() for a, b in zip(one, other)):
        return False
    pairs: list[tuple[Tensor | None, Tensor | None]] = [(value, other[1][name]) for name, value in one[1].items()]
    for name, layer in one[0].items():
        twin = other[0][name]
        if not math.isclose(layer.scale, twin.scale) or layer.embedding != twin.embedding:
            return False
        parts = ("down", "up", "bias", "magnitude")
        pairs += [(getattr(layer, part), getattr(twin, part)) for part in parts]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
