"""Tensors that are sharded over processes, written and read as shards: no process ever holds a whole one.

torch.distributed.checkpoint in its safetensors form: a file for each process, whose header says where in the full
tensor each shard lies. Its usual form keeps that in a pickled ``.metadata``, which is neither written nor read here.
Any number of processes can read what any number wrote, a single one included.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from arimage.errors import UsageError


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's shards of ``tensors``; every process must call it.

    Raises:
        UsageError: torch is too old.
    """
    from torch.distributed import checkpoint

    writer = _storage().HuggingFaceStorageWriter(str(folder), save_distributed=True)
    checkpoint.save(_with_dimensions(unshared(tensors)), storage_writer=writer)


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``tensors``, sharded or not, in place; every process must call it.

    Raises:
        UsageError: torch is too old.
    """
    from torch.distributed import checkpoint

    if not tensors:
        return
    reader = _storage().HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process may read, too
        checkpoint.load(_with_dimensions(tensors), storage_reader=reader)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Full shapes of the tensors of a folder, without reading them; those without dimensions have one, of 1."""
    found = _storage().HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(about.size) for name, about in found.items()}


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors, or shards of them, with copies of those that share memory with one before: safetensors refuses them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        pointer = local.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen and local.numel() else tensor
        seen.add(pointer)
    return result


def _with_dimensions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of at least one dimension: of a tensor without any no slice can be read."""
    return {name: value.detach().view(1) if value.ndim == 0 else value.detach() for name, value in tensors.items()}


def _storage() -> Any:
    try:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.hf_storage import CUSTOM_METADATA_KEY  # noqa: F401 (absent: no places in headers)
    except ImportError:
        raise UsageError("states of sharded runs need torch 2.8 or later: pip install --upgrade torch") from None
    return checkpoint
