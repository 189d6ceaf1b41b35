"""Safetensors files of a checkpoint: filling networks from them tensor by tensor, and writing them shard by shard.

A network is built on the meta device, so that it costs nothing, and every parameter is read straight to its device
and precision. A file is reopened every few dozen megabytes: what has been read is unmapped, and the host never
holds more than the network itself and a small window of the file.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from arimage.checkpoints.components import T5_ALIASES
from arimage.checkpoints.hub import fetch_hint, refuse_pointer
from arimage.checkpoints.json_files import read_json, write_json
from arimage.errors import CheckpointError

WINDOW_BYTES = 32 * 2**20
INDEX_SUFFIX = ".safetensors.index.json"
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Network = TypeVar("Network", bound=nn.Module)


def visible(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder in the order of their names, without those that systems leave beside them (``._model.…``)."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


class WeightFiles:
    """The safetensors files of one folder of a checkpoint.

    Raises:
        CheckpointError: there are none, or one is missing, truncated, not safetensors or not named by the index, or a
            tensor is in two of them; pickled weights are never read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self.files = visible(folder, "*.safetensors")
        listed = self._listed()
        if not self.files and not listed:
            raise CheckpointError(self._none_found())
        for file in sorted({*self.files, *(folder / name for name in listed.values())}):
            for name in self._names(file):
                if name in self._file_of:
                    raise CheckpointError(
                        f"{folder}: the tensor {name!r} is in {self._file_of[name].name} and in {file.name}; "
                        "leave the file there that is meant"
                    )
                self._file_of[name] = file
        for name, file_name in listed.items():
            if self._file_of.get(name) != folder / file_name:
                raise CheckpointError(f"{folder / file_name}: the tensor {name!r} that the index lists is missing")

    def _listed(self) -> dict[str, str]:
        """The file name of every tensor that the folder's index lists; empty without an index.

        Raises:
            CheckpointError: there are two, it is damaged, or there is a file that it does not name.
        """
        indices = visible(self.folder, "*" + INDEX_SUFFIX)
        if not indices:
            return {}
        if len(indices) > 1:
            raise CheckpointError(
                f"{self.folder} holds {indices[0].name} and {indices[1].name}; leave the index there that is meant"
            )
        listed = read_json(indices[0]).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{indices[0]}: the key 'weight_map' is missing or is no object")
        for name, file in listed.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{indices[0]}: {name!r} is said to be in {file!r}, which is no name of a file")
        for path in self.files:
            if path.name not in listed.values():
                raise CheckpointError(f"{path} is not named by {indices[0].name} beside it; remove one of them")
        return listed

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._file_of)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors one by one, in the order of the files; each must be copied before the next is asked for.

        Raises:
            CheckpointError: a file is damaged; the message names file and tensor.
        """
        ordered = sorted(names, key=lambda name: (self._file_of[name], name))
        for file, in_file in groupby(ordered, key=self._file_of.__getitem__):
            remaining = list(in_file)
            while remaining:
                taken = 0
                with self._open(file) as handle:
                    while remaining and taken < WINDOW_BYTES:
                        name = remaining.pop(0)
                        try:
                            tensor = handle.get_tensor(name)
                        except (SafetensorError, RuntimeError, ValueError) as error:
                            raise CheckpointError(f"{file}: the tensor {name!r} cannot be read: {error}") from None
                        taken += tensor.nbytes
                        yield name, tensor
                        del tensor

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, read from the headers."""
        shapes = {}
        for file in self.files:
            with self._open(file) as handle:
                for name in handle.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                    shapes[name] = tuple(handle.get_slice(name).get_shape())
        return shapes

    def _names(self, file: Path) -> list[str]:
        with self._open(file) as handle:
            return list(handle.keys())

    @staticmethod
    def _open(file: Path) -> safe_open:
        try:
            return safe_open(file, framework="pt")
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing{fetch_hint(file)}") from None
        except (SafetensorError, OSError, ValueError) as error:
            refuse_pointer(file)
            raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from None

    def _none_found(self) -> str:
        unsafe = [path.name for path in self.folder.glob("*") if path.suffix in UNSAFE_SUFFIXES]
        if unsafe:
            return (
                f"{self.folder} holds {unsafe[0]}, which can run code when it is opened and is not read; "
                "convert it to safetensors first"
            )
        return f"{self.folder} holds no safetensors file{fetch_hint(self.folder)}"


def fill(
    network: Network,
    weights: WeightFiles,
    device: torch.device,
    dtype: torch.dtype,
    others: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> Network:
    """Give a network on the meta device its weights; it comes out in eval mode, without gradients.

    Args:
        others: names in the same folder that belong to another network.
        aliases: names of parameters that may be missing or present, each the same parameter as another one.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or no floating-point number; the message
            names file and tensor.
    """
    aliases = aliases or {}
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if name not in aliases}
    sources = {name: name for name in wanted}
    for alias, name in aliases.items():
        if name not in weights.names and alias in weights.names:
            sources[name] = alias
    missing = sorted(set(sources.values()) - weights.names)
    if missing:
        raise CheckpointError(f"{weights.folder}: the tensor {missing[0]!r} is missing{_and_more(missing)}")
    extra = sorted(weights.names - set(sources.values()) - set(others) - set(aliases))
    if extra:
        file = weights.file_of(extra[0])
        raise CheckpointError(f"{file}: the tensor {extra[0]!r} belongs to no network{_and_more(extra)}")
    names = {source: name for name, source in sources.items()}
    for source, tensor in weights.read(names):
        name = names[source]
        if tensor.shape != wanted[name]:
            raise CheckpointError(
                f"{weights.file_of(source)}: the tensor {source!r} has shape {tuple(tensor.shape)}, "
                f"the configuration says {tuple(wanted[name])}"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{weights.file_of(source)}: the tensor {source!r} is {tensor.dtype}, not a float")
        owner, _, leaf = name.rpartition(".")
        value = tensor.to(device=device, dtype=dtype, copy=True)
        setattr(network.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
        del tensor, value
    return network.eval()


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def write_weights(
    folder: Path, stem: str, state: Mapping[str, Tensor], dtype: torch.dtype, max_shard_size: int | str
) -> None:
    """Write a component's tensors as safetensors, with an index where they need several files.

    Args:
        stem: of the files' names.
        dtype: to which tensors are cast, shard by shard.
        max_shard_size: bytes of a file, or such as ``"5GB"``.
    """
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
        write_json(folder / f"{stem}.safetensors.index.json", index)
