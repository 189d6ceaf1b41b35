"""A run's saved states: whole or not there, the newest valid one found by itself, the last few and the best kept.

A state is a folder of safetensors (weights, optimiser, moving average) and a ``state.json`` that is written last and
lists every file with its hash. A run that is sharded over processes writes shards (:mod:`.sharded_state`) into a folder
for each of the three; any other writes a file for each, with tensors in their full shape. Either can be read by any
number of processes. No pickle is read or written.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arimage.training import sharded_state
from arimage.training.processes import Processes

PATTERN = "step-*"
PARTS = ("weights", "optimizer", "average")


@dataclass
class Saved:
    """What a state holds.

    Attributes:
        step: optimiser steps done.
        weights, optimizer, average: tensors by name; ``average`` is empty without a moving average. Of a sharded state
            that is read they are all empty: :func:`arimage.training.sharded_state.read_shards` fills what is there.
        groups: the optimiser's settings.
        settings: what it was made with, see :mod:`arimage.training.signature`; None where a state does not say.
        metadata: anything small and JSON: losses, counts, best figures.
        shards: the folder of a sharded state that is read.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    groups: list[Any]
    settings: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    shards: Path | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shapes of the weights; a number has one dimension, of 1."""
        if self.shards is not None:
            return sharded_state.shapes(self.shards / "weights")
        return {name: tuple(value.shape) or (1,) for name, value in self.weights.items()}


def save_state(folder: Path, saved: Saved) -> Path:
    """Write a state under ``folder``; it appears whole or not at all."""
    part = folder / f".{_name(saved.step)}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    files = {}
    for name in PARTS:
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(saved, name).items()}
        save_file(sharded_state.unshared(tensors), part / f"{name}.safetensors")
        files[f"{name}.safetensors"] = _hash(part / f"{name}.safetensors")
    return _finished(part, saved, files, sharded=False)


def save_sharded(folder: Path, saved: Saved, processes: Processes) -> None:
    """Write a state of sharded tensors under ``folder``, which all processes share; each writes its own shards, and
    the state appears whole or not at all. Every process must call it."""
    part = folder / f".{_name(saved.step)}.part"
    if processes.main:
        shutil.rmtree(part, ignore_errors=True)
        for name in PARTS:
            (part / name).mkdir(parents=True)
    processes.wait()
    for name in PARTS:
        if getattr(saved, name):
            sharded_state.write_shards(part / name, getattr(saved, name))
    processes.wait()
    mine = sorted(part.rglob("*.safetensors"))[processes.index :: processes.count]
    hashes = {str(path.relative_to(part)): _hash(path) for path in mine}
    files = {name: digest for found in processes.gathered(hashes) for name, digest in found.items()}
    if processes.main:
        _finished(part, saved, files, sharded=True)


def _finished(part: Path, saved: Saved, files: Mapping[str, str], sharded: bool) -> Path:
    """Write what a state says about itself, and put it into its place."""
    contents = {
        "step": saved.step, "settings": saved.settings, "groups": saved.groups, "metadata": saved.metadata,
        "sharded": sharded, "files": files,
    }  # fmt: skip
    with (part / "state.json").open("w", encoding="utf-8") as handle:
        json.dump(contents, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    final = part.parent / _name(saved.step)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    return final


def _name(step: int) -> str:
    return f"step-{step:08d}"


def valid(path: Path) -> bool:
    """Whether a state is complete: every file that it lists is there and has its hash."""
    try:
        contents = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return all(
            (path / name).exists() and _hash(path / name) == digest for name, digest in contents["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def newest(folder: Path) -> Path | None:
    """The newest valid state, or None."""
    return next((path for path in sorted(folder.glob(PATTERN), reverse=True) if valid(path)), None)


def load_state(path: Path) -> Saved:
    """Read a state; of a sharded one all but its tensors."""
    contents = json.loads((path / "state.json").read_text(encoding="utf-8"))
    about = {name: contents.get(name) for name in ("groups", "settings")}
    if contents.get("sharded"):
        return Saved(contents["step"], {}, {}, {}, **about, metadata=contents["metadata"], shards=path)
    parts = {name: load_file(path / f"{name}.safetensors") for name in PARTS}
    return Saved(contents["step"], **parts, **about, metadata=contents["metadata"])


def thin(folder: Path, keep: int, best: int | None) -> None:
    """Remove all states but the last ``keep`` and the best one, and what crashes left."""
    states = sorted(path for path in folder.glob(PATTERN))
    for path in states[:-keep]:
        if best is None or path.name != _name(best):
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*.part"):
        shutil.rmtree(path, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def gathered(tensor: Tensor) -> Tensor:
    """A tensor in its full shape on the CPU, whatever it was sharded over (every process must call this)."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.detach().to("cpu", copy=True)


class ExponentialMovingAverage:
    """An exponential moving average of trainable parameters, sharded as they are."""

    def __init__(self, decay: float, parameters: Mapping[str, Tensor]) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Follow the parameters after a step; early steps count more (decay at most (1 + step) / (10 + step))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(parameters[name].detach().to(value.dtype), 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: Mapping[str, Tensor]) -> None:
        """Exchange the parameters with their average; a second call puts them back."""
        for name, value in self.values.items():
            kept = parameters[name].detach().clone()
            parameters[name].data.copy_(value)
            value.copy_(kept)
