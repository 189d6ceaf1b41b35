"""The prepared cache: a data set's visual tokens, latents and captions, encoded once.

    index.json                 what made it, and how many samples each shard holds
    shard-00000.safetensors    tensors by sample; shard-00000.json their captions and sizes

Shards appear whole or not at all, so preparing goes on where it stopped. The index holds a hash of the encoders'
weights: a cache of other networks is refused, not silently trained on. For a stage of the autoregressive model the
latents, by far the most of the work, are left out, and the autoencoder is free to change.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arimage.checkpoint import Checkpoint
from arimage.data.buckets import BucketBatches
from arimage.data.records import EncodedRecord, Record, SampleError, reason
from arimage.errors import DataError
from arimage.output import write_whole
from arimage.training.bad_samples import BadSample, BadSamples
from arimage.training.batches import Encoders, StepBatches
from arimage.training.config import TrainConfig
from arimage.training.objective import pixels
from arimage.training.tokens import encode_views, preview_view, reference_view
from tokenizer.image_size import SizeLimits
from tokenizer.semantic_tokenizer import half_size_pixels

INDEX = "index.json"


@dataclass(frozen=True)
class Prepared:
    """How much :func:`prepare` made, and how many of the data's samples cannot be used."""

    samples: int
    shards: int
    skipped: int


def encoders_hash(checkpoint: Checkpoint, latents: bool = True) -> str:
    """SHA-256 over what a cache depends on: the weights of the semantic tokenizer and the sizes of the processor; with
    ``latents`` also the weights of the autoencoder and the latents' statistics."""
    digest = hashlib.sha256()
    cpu, config = torch.device("cpu"), checkpoint.config
    networks: list[torch.nn.Module] = [checkpoint.semantic_tokenizer(device=cpu, dtype=torch.float32)]
    if latents:
        networks.append(checkpoint.autoencoder(device=cpu, dtype=torch.float32))
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.numpy().tobytes())
    statistics = (config.autoencoder.latents_mean, config.autoencoder.latents_std) if latents else ()
    digest.update(repr((*statistics, config.processor)).encode())
    return digest.hexdigest()


def prepare(config: TrainConfig, folder: Path, count: int, shard: int, say: Callable[[str], None] = print) -> Prepared:
    """Encode the first ``count`` samples of a stage's data: visual tokens, and latents if the stage has use for them.

    Raises:
        DataError: the folder holds a cache of other networks or settings, or too many samples are bad.
    """
    from accelerate import Accelerator

    device = Accelerator().device
    checkpoint = Checkpoint.open(config.start)
    data = [source.model_dump(mode="json") for source in config.data]
    latents = config.train != "autoregressive"
    about = {
        "encoders": encoders_hash(checkpoint, latents), "latents": latents, "data": data, "seed": config.seed,
        "shard": shard, "batch_size": config.batch_size,
    }  # fmt: skip
    if any(source.path for source in config.data):
        about["placement"] = "pairs"
    index: dict[str, Any] = {"about": about, "shards": []}
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if {"latents": True, **index["about"]} != json.loads(json.dumps(about)):
            raise DataError(f"{folder} holds a cache of other networks or settings; choose another folder")
    encoder = _Encoder(checkpoint, device, latents)
    batches = StepBatches(config.data, config.batch_size, lambda examples: {}, config.captions, seed=config.seed)
    shards: list[dict[str, Any]] = index["shards"]
    bad_samples = BadSamples(folder, config.max_bad_share, batches.sizes)
    bad_samples.add(batches.unreadable)
    step = shards[-1]["next_step"] if shards else 0
    done = sum(entry["samples"] for entry in shards)
    while done < count:
        tensors: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        while len(rows) < min(shard, count - done):
            examples, bad = batches.examples(step)
            step += 1
            bad_samples.add(bad)
            excess = bad_samples.excess()
            if excess is not None:
                raise DataError(excess)
            for example in examples:
                if isinstance(example.record, Record):
                    rows.append(encoder.add(example.record, len(rows), tensors))
        name = f"shard-{len(shards):05d}"
        _write_shard(folder, name, tensors, rows)
        shards.append({"name": name, "samples": len(rows), "next_step": step})
        write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
        done += len(rows)
        say(f"{done} of {count} samples, {len(bad_samples.found)} skipped")
    return Prepared(done, len(shards), len(bad_samples.found))


class _Encoder:
    def __init__(self, checkpoint: Checkpoint, device: torch.device, latents: bool) -> None:
        self.tokenizer = checkpoint.semantic_tokenizer(device=device, dtype=torch.float32)
        self.autoencoder = checkpoint.autoencoder(device=device, dtype=torch.float32) if latents else None
        processor = checkpoint.config.processor
        self.limits, self.device = SizeLimits(processor.min_side, processor.max_side), device

    @torch.no_grad()
    def add(self, record: Record, number: int, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Put a record's tensors into a shard; its row."""
        references = [reference_view(source, self.limits) for source in record.sources]
        views = [half_size_pixels(image) for image in (record.image, *references)]
        if not references:
            views.append(preview_view(record.image))
        codes = [grid.cpu().to(torch.int32) for grid in encode_views(self.tokenizer, views, self.device)]
        if not references:
            tensors[f"{number}/preview"] = codes[-1]
        names = [f"{number}", *(f"{number}/reference-{place}" for place in range(len(references)))]
        for name, grid, image in zip(names, codes, (record.image, *references)):
            tensors[f"{name}/codes"] = grid
            if self.autoencoder is not None:
                values = pixels(image)[None].to(self.device)
                tensors[f"{name}/latents"] = self.autoencoder.encode(values)[0].cpu().half()
        return {
            "size": [record.image.height, record.image.width], "captions": record.captions, "task": record.task,
            "rating": record.rating, "references": len(references), "name": record.name,
        }  # fmt: skip


def _write_shard(folder: Path, name: str, tensors: dict[str, Tensor], rows: list[dict[str, Any]]) -> None:
    from safetensors.torch import save

    write_whole(folder / f"{name}.safetensors", save({key: value.contiguous() for key, value in tensors.items()}))
    write_whole(folder / f"{name}.json", json.dumps(rows).encode())


class CacheSource:
    """A cache as a source of batches: samples of one size and one number of references go together.

    Args:
        encoders: gives the hash of the encoders that it must have been made with (:func:`encoders_hash`), for caches
            with and without latents; None where such a cache is of no use.

    Raises:
        DataError: it is missing, damaged, made with other encoders, or lacks latents.
    """

    def __init__(self, folder: Path, seed: int, batch: int, encoders: Encoders | None) -> None:
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
        self.batches = BucketBatches(kinds, batch, seed)
        self._open = lru_cache(maxsize=4)(self._opened)

    def records(self, draw: int, count: int) -> list[Callable[[int], EncodedRecord]]:
        """Readers of the ``draw``-th batch."""
        per_epoch = len(self._order(0))
        batch = self._order(draw // per_epoch)[draw % per_epoch]
        return [lambda attempt, index=index: self._read(index) for index in batch[:count]]  # type: ignore[misc]

    def _order(self, epoch: int) -> list[list[int]]:
        if getattr(self, "_epoch", (-1, []))[0] != epoch:
            self._epoch = (epoch, self.batches.epoch_batches(epoch))
        return self._epoch[1]

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
            (codes(f"reference-{place}/codes"), latents(f"reference-{place}/latents"))
            for place in range(row["references"])
        )
        preview = None if row["references"] else codes("preview")
        return EncodedRecord(
            tuple(row["size"]), codes("codes"), preview, latents("latents"), references, row["captions"],
            row["task"], row["rating"], row["name"],
        )  # fmt: skip
