"""Caches of encoded samples, written shard by shard and read as a source of batches."""

import json
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
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


def write_shard(folder: Path, name: str, tensors: dict[str, Tensor], rows: list[dict[str, Any]]) -> None:
    """Write a shard: tensors by ``number/name``, and the rows with captions and sizes."""
    from safetensors.torch import save

    write_whole(folder / f"{name}.safetensors", save({key: value.contiguous() for key, value in tensors.items()}))
    write_whole(folder / f"{name}.json", json.dumps(rows).encode())


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
            self.rows = [
                (entry["name"], number, row)
                for entry in index["shards"]
                for number, row in enumerate(json.loads((folder / f"{entry['name']}.json").read_text(encoding="utf-8")))
            ]
        except FileNotFoundError:
            raise DataError(f"{folder} is no prepared cache; make it with: arimage prepare STAGE -o {folder}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is damaged: {error}") from None
        self.latents = index["about"].get("latents", True)
        wanted = index["about"]["encoders"] if encoders is None else encoders(self.latents)
        if wanted is None:
            raise DataError(f"{folder} holds no latents; prepare one from a stage of the decoder")
        if wanted != index["about"]["encoders"]:
            raise DataError(
                f"{folder} was prepared with another tokenizer or autoencoder than the stage starts from; "
                "prepare it again from this checkpoint"
            )
        apart = any(source.get("path") for source in index["about"].get("data", []))
        if apart and "placement" not in index["about"] and any(row["references"] for _, _, row in self.rows):
            raise DataError(f"{folder} holds edits whose sources were not cropped with their targets; prepare it again")
        self.name, self.size = str(folder), len(self.rows)
        self.unreadable: list[BadSample] = []
        kinds = [(*row["size"], row["references"]) for _, _, row in self.rows]
        numbers = {kind: number for number, kind in enumerate(sorted(set(kinds)))}
        blocks = [cut(len(list(rows))) for _, rows in groupby(shard for shard, _, _ in self.rows)]
        self.order = EpochOrder(
            np.array([numbers[kind] for kind in kinds], np.uint16), [rows for shard in blocks for rows in shard], batch,
            seed, shards=[len(shard) for shard in blocks],
        )  # fmt: skip
        self.batches = None if epochs is None else epochs * self.order.batches_per_epoch
        self.threads = 1
        self._open = lru_cache(maxsize=2 * OPEN_SHARDS)(self._opened)

    def records(self, draw: int, count: int) -> list[Callable[[int], EncodedRecord]]:
        """Readers of the ``draw``-th batch."""

        def reader(row: int) -> Callable[[int], EncodedRecord]:
            return lambda attempt: self._read(row)

        return [reader(int(row)) for row in self.order.batch(draw)[:count]]

    def _opened(self, name: str) -> Any:
        from safetensors import safe_open

        return safe_open(self.folder / f"{name}.safetensors", framework="pt")

    def _read(self, index: int) -> EncodedRecord:
        shard, number, row = self.rows[index]
        try:
            return self._record(shard, number, row)
        except Exception as error:  # a damaged file may raise anything
            raise SampleError(f"{self.folder / shard}.safetensors:{number}", reason(error)) from None

    def _record(self, shard: str, number: int, row: dict[str, Any]) -> EncodedRecord:
        file = self._open(shard)

        def codes(name: str) -> Tensor:
            return file.get_tensor(f"{number}/{name}").long()

        def latents(name: str) -> Tensor | None:
            return file.get_tensor(f"{number}/{name}").float() if self.latents else None

        references = tuple(
            EncodedReference(codes(f"reference-{place}/codes"), latents(f"reference-{place}/latents"))
            for place in range(row["references"])
        )
        preview = None if row["references"] else codes("preview")
        return EncodedRecord(
            tuple(row["size"]), codes("codes"), preview, latents("latents"), references, row["captions"],
            row["task"], row["rating"], row["name"],
        )  # fmt: skip
