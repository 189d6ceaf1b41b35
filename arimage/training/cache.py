"""Caches of encoded samples, written shard by shard and read as a source of batches.

What is read is verified without reading more than that: the index holds the size of a shard's tensors and the checksum
of its rows, which a start reads; a row holds the checksum of its sample's tensors.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from arimage.data.order import OPEN_SHARDS, EpochOrder, cut
from arimage.data.records import EncodedRecord, EncodedReference, SampleError, reason
from arimage.errors import DataError
from arimage.files import write_whole
from arimage.training.bad_samples import BadSample

INDEX = "index.json"
Encoders = Callable[[bool], str | None]


def write_shard(
    folder: Path, name: str, samples: list[tuple[dict[str, Any], dict[str, Tensor]]], about: dict[str, Any]
) -> None:
    """Write a shard: tensors by ``number/name``, then rows with captions and sizes, by which it is finished.

    Args:
        samples: row and tensors by name of each.
        about: what the index will say of the shard.
    """
    from safetensors.torch import save

    tensors = {
        f"{number}/{key}": tensor.contiguous() for number, (_, own) in enumerate(samples) for key, tensor in own.items()
    }
    rows = [row | {"checksum": checksum(own)} for row, own in samples]
    write_whole(folder / f"{name}.safetensors", save(tensors))
    write_whole(folder / f"{name}.json", json.dumps(about | {"rows": rows}).encode())


def shard_entry(folder: Path, name: str) -> dict[str, Any] | None:
    """What the index says of a finished shard; None where it is not finished, or of a release without checksums."""
    try:
        size = (folder / f"{name}.safetensors").stat().st_size
        contents = (folder / f"{name}.json").read_bytes()
    except FileNotFoundError:
        return None
    shard = json.loads(contents)
    if isinstance(shard, list):
        return None
    samples = len(shard.pop("rows"))
    return {"name": name, "samples": samples, **shard, "bytes": size, "sha256": hashlib.sha256(contents).hexdigest()}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in the CPU's memory, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


class CacheSource:
    """A cache as a source of batches: samples of one size and one number of references go together.

    Args:
        encoders: gives the hash of the encoders that it must have been made with
            (:func:`arimage.training.prepare.encoders_hash`), for caches with and without latents; None where such a
            cache is of no use.

    Raises:
        DataError: it is missing, damaged, made with other encoders, or lacks latents.
    """

    def __init__(
        self, folder: Path, seed: int, batch: int, encoders: Encoders | None, epochs: int | None = None
    ) -> None:
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.shards: list[dict[str, Any]] = index["shards"]
            samples = sum(entry["samples"] for entry in self.shards)
            shard = index["about"].get("shard", 512)
            self.again = f"arimage prepare STAGE -n {samples} --shard {shard} -o {folder}"
        except FileNotFoundError:
            raise DataError(f"{folder} is no prepared cache; make it with: arimage prepare STAGE -o {folder}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is damaged: {error}") from None
        if not samples:
            raise DataError(f"{folder} has no finished shard yet; go on with the arimage prepare that began it")
        self.latents = index["about"].get("latents", True)
        wanted = index["about"]["encoders"] if encoders is None else encoders(self.latents)
        if wanted is None:
            raise DataError(f"{folder} holds no latents; prepare one from a stage of the decoder")
        if wanted != index["about"]["encoders"]:
            raise DataError(
                f"{folder} was prepared with another tokenizer or autoencoder than the stage starts from; "
                "prepare it again from this checkpoint"
            )
        self.name, self.size = str(folder), samples
        self.unreadable: list[BadSample] = []
        found: dict[tuple[int, int, int], int] = {}
        kinds = np.array(
            [
                found.setdefault((*row["size"], row["references"]), len(found))
                for shard in range(len(self.shards))
                for row in self._checked_rows(shard)
            ],
            np.uint16,
        )
        apart = any(source.get("path") for source in index["about"].get("data", []))
        if apart and "placement" not in index["about"] and any(references for _, _, references in found):
            raise DataError(f"{folder} holds edits whose sources were not cropped with their targets; prepare it again")
        numbers = {kind: number for number, kind in enumerate(sorted(found))}
        blocks = [cut(entry["samples"]) for entry in self.shards]
        self.starts = np.cumsum([0, *(entry["samples"] for entry in self.shards)])
        self.order = EpochOrder(
            np.array([numbers[kind] for kind in found], np.uint16)[kinds],
            [rows for shard in blocks for rows in shard], batch, seed, shards=[len(shard) for shard in blocks],
        )  # fmt: skip
        self.batches = None if epochs is None else epochs * self.order.batches_per_epoch
        self.threads = 1
        self._open = lru_cache(maxsize=2 * OPEN_SHARDS)(self._opened)
        self._rows = lru_cache(maxsize=2 * OPEN_SHARDS)(self._read_rows)

    def records(self, draw: int, count: int) -> list[Callable[[int], EncodedRecord]]:
        """Readers of the ``draw``-th batch."""

        def reader(row: int) -> Callable[[int], EncodedRecord]:
            return lambda attempt: self._read(self.order.another(row, attempt))

        return [reader(int(row)) for row in self.order.batch(draw)[:count]]

    def _checked_rows(self, shard: int) -> list[dict[str, Any]]:
        """The rows of a shard whose tensors are there.

        Raises:
            DataError: they, or the tensors, are missing or not what the index says.
        """
        entry = self.shards[shard]
        file = self.folder / f"{entry['name']}.safetensors"
        try:
            size = file.stat().st_size
            if size != entry.get("bytes", size):
                raise ValueError(f"it has {size} bytes, not {entry['bytes']}")
            file = file.with_suffix(".json")
            return self._read_rows(shard)
        except FileNotFoundError:
            raise DataError(f"{file} is missing; make it again with: {self.again}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} is damaged: {reason(error)}; delete it and make it again with: {self.again}"
            ) from None

    def _read_rows(self, shard: int) -> list[dict[str, Any]]:
        entry = self.shards[shard]
        contents = (self.folder / f"{entry['name']}.json").read_bytes()
        if entry.get("sha256", "") not in ("", hashlib.sha256(contents).hexdigest()):
            raise ValueError("its checksum is not that of the index")
        rows = json.loads(contents)
        rows = rows if isinstance(rows, list) else rows["rows"]
        if len(rows) != entry["samples"]:
            raise ValueError(f"it has {len(rows)} samples, not {entry['samples']}")
        return rows

    def _opened(self, name: str) -> Any:
        from safetensors import safe_open

        return safe_open(self.folder / f"{name}.safetensors", framework="pt")

    def _read(self, index: int) -> EncodedRecord:
        shard = int(np.searchsorted(self.starts, index, "right")) - 1
        number, name = index - int(self.starts[shard]), self.shards[shard]["name"]
        try:
            return self._record(name, number, self._rows(shard)[number])
        except Exception as error:  # a damaged file may raise anything
            way_out = f"delete the file and make it again with: {self.again}"
            raise SampleError(f"{self.folder / name}.safetensors:{number}", f"{reason(error)}; {way_out}") from None

    def _record(self, shard: str, number: int, row: dict[str, Any]) -> EncodedRecord:
        file = self._open(shard)
        read: dict[str, Tensor] = {}

        def tensor(name: str) -> Tensor:
            read[name] = file.get_tensor(f"{number}/{name}")
            return read[name]

        def codes(name: str) -> Tensor:
            return tensor(name).long()

        def latents(name: str) -> Tensor | None:
            return tensor(name).float() if self.latents else None

        references = tuple(
            EncodedReference(codes(f"reference-{place}/codes"), latents(f"reference-{place}/latents"))
            for place in range(row["references"])
        )
        preview = None if row["references"] else codes("preview")
        record = EncodedRecord(
            tuple(row["size"]), codes("codes"), preview, latents("latents"), references, row["captions"],
            row["task"], row["rating"], row["name"],
        )  # fmt: skip
        if row.get("checksum", "") not in ("", checksum(read)):
            raise ValueError("its checksum is not that of its row")
        return record
