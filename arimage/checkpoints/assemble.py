"""One checkpoint folder out of several: networks that were trained side by side, put together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import Tensor

from arimage.checkpoints.checkpoint import Checkpoint, update_checkpoint
from arimage.checkpoints.components import Component
from arimage.checkpoints.domain import FILE as DOMAIN
from arimage.checkpoints.weights import WeightFiles
from arimage.errors import CheckpointError, UsageError, nearest
from arimage.options import WITH_REFERENCES

# Of each network: the component that holds it, the prefixes of its weights, and the settings that weights do not show
# and that the base must share. The autoencoder brings its own.
PARTS: dict[str, tuple[Component, tuple[str, ...], tuple[str, ...]]] = {
    "semantic_tokenizer": (
        "vision_language_encoder",
        ("model.visual.", "model.vqmodel."),
        ("vision_encoder", "quantizer"),
    ),
    "autoregressive": ("vision_language_encoder", ("model.language_model.", "lm_head."), ("text_model",)),
    "transformer": ("transformer", ("",), ("transformer",)),
    "glyph_encoder": ("text_encoder", ("",), ("glyph_encoder",)),
    "autoencoder": ("vae", ("",), ()),
}


def assemble(
    base: str | Path,
    parts: Mapping[str, str | Path],
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    name: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder like ``base``, with its ``domain.json``, and with some networks taken from other folders.

    Args:
        parts: folders by network: ``semantic_tokenizer``, ``autoregressive``, ``transformer``, ``glyph_encoder``,
            ``autoencoder`` (with its latents' statistics).
        name: what to call the model; that of ``base`` by default.
        sampling: how it is best sampled, where it differs from what ``base`` says.

    Raises:
        UsageError: a network is not known.
        CheckpointError: a folder's network has other dimensions or settings (RoPE, norms) than that of ``base``.
    """
    checkpoint = Checkpoint.open(base)
    config = checkpoint.config
    states: dict[Component, dict[str, Tensor]] = {}
    for part, folder in parts.items():
        if part not in PARTS:
            raise UsageError(f"there is no network {part!r}{nearest(part, PARTS)}; known are {', '.join(PARTS)}")
        component, prefixes, sections = PARTS[part]
        other = Checkpoint.open(folder)
        _check_settings(part, sections, checkpoint, other)
        weights = WeightFiles(other.path / component)
        names = [name for name in weights.names if name.startswith(prefixes)]
        states.setdefault(component, {}).update(weights.read({name: name for name in names}))
        if part == "autoencoder":
            config = config.model_copy(update={"autoencoder": other.config.autoencoder})
    drawn = _changed(checkpoint.sampling, sampling or {})
    made = update_checkpoint(checkpoint, path, states, dtype=dtype, config=config, name=name, sampling=drawn)
    if (checkpoint.path / DOMAIN).exists():
        copyfile(checkpoint.path / DOMAIN, made / DOMAIN)
    return made


def _changed(sampling: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling with what is given in place of what was there, name by name; also of pictures with references."""
    merged = {**sampling, **given}
    inner = {**sampling.get(WITH_REFERENCES, {}), **given.get(WITH_REFERENCES, {})}
    return merged | ({WITH_REFERENCES: inner} if inner else {})


def _check_settings(part: str, sections: Sequence[str], base: Checkpoint, other: Checkpoint) -> None:
    """Refuse a part that was trained under other settings, such as another base of RoPE."""
    for section in sections:
        ours, theirs = (getattr(one.config, section).model_dump() for one in (base, other))
        for name, value in theirs.items():
            if ours[name] != value:
                raise CheckpointError(
                    f"{part} of {other.path} has {section}.{name} {value}, {base.path} has {ours[name]}: take that "
                    "folder as the base"
                )
