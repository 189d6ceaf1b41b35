"""The prepared cache: a data set's visual tokens, latents and captions, encoded once.

    index.json                 what made it, and how many samples each shard holds
    shard-00000.safetensors    tensors by sample; shard-00000.json their captions and sizes

Shards appear whole or not at all, so preparing goes on where it stopped. The index holds a hash of the encoders'
weights: a cache of other networks is refused, not silently trained on. For a stage of the autoregressive model the
latents, by far the most of the work, are left out, and the autoencoder is free to change.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.data.records import Record
from arimage.errors import DataError
from arimage.files import write_whole
from arimage.training.bad_samples import BadSamples
from arimage.training.batches import StepBatches
from arimage.training.cache import INDEX, write_shard
from arimage.training.codes import encode_views, preview_view, reference_view
from arimage.training.config import TrainConfig
from tokenizer.pixels import pixels
from tokenizer.semantic_tokenizer import half_size_pixels


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
    digest.update(repr((*statistics, config.processor.limits)).encode())
    return digest.hexdigest()


Encoded = tuple[dict[str, Any], dict[str, Tensor]]
Spread = Callable[[Callable[[], Callable[[Record], Encoded]], Iterable[Record]], Iterator[Encoded]]


def prepare(
    config: TrainConfig,
    folder: Path,
    count: int,
    shard: int,
    say: Callable[[str], None] = print,
    spread: Spread | None = None,
) -> Prepared:
    """Encode the first ``count`` samples of a stage's data: visual tokens, and latents if the stage has use for them.

    Args:
        spread: has an encoder run on many records, in order, elsewhere: :func:`arimage.scale.spread.spread`. What is
            written does not depend on it.

    Raises:
        DataError: the folder holds a cache of other networks or settings, or too many samples are bad.
    """
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
    encoded = (
        _here(config.start, latents)
        if spread is None
        else partial(spread, partial(_encoder, os.path.abspath(config.start), latents))
    )
    batches = StepBatches(config.data, config.batch_size, lambda examples: {}, config.captions, seed=config.seed)
    shards: list[dict[str, Any]] = index["shards"]
    bad_samples = BadSamples(folder, config.max_bad_share, batches.sizes)
    bad_samples.add(batches.unreadable)
    step = shards[-1]["next_step"] if shards else 0
    done = sum(entry["samples"] for entry in shards)
    while done < count:
        records: list[Record] = []
        while len(records) < min(shard, count - done):
            examples, bad = batches.examples(step)
            step += 1
            bad_samples.add(bad)
            excess = bad_samples.excess()
            if excess is not None:
                raise DataError(excess)
            records += [example.record for example in examples if isinstance(example.record, Record)]
        tensors: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        for row, own in encoded(records):
            tensors |= {f"{len(rows)}/{name}": tensor for name, tensor in own.items()}
            rows.append(row)
        name = f"shard-{len(shards):05d}"
        write_shard(folder, name, tensors, rows)
        shards.append({"name": name, "samples": len(rows), "next_step": step})
        write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
        done += len(rows)
        say(f"{done} of {count} samples, {len(bad_samples.found)} skipped")
    return Prepared(done, len(shards), len(bad_samples.found))


def _here(start: str, latents: bool) -> Callable[[Iterable[Record]], Iterator[Encoded]]:
    """An encoder of many records in this process."""
    encoder = _encoder(start, latents)
    return lambda records: map(encoder, records)


def _encoder(start: str, latents: bool) -> Callable[[Record], Encoded]:
    from accelerate import Accelerator

    return _Encoder(Checkpoint.open(start), Accelerator().device, latents)


def smallest_integers(codes: int) -> torch.dtype:
    """The smallest type that holds the numbers of so many codes."""
    kinds = (torch.uint8, torch.int16, torch.int32)
    return next(kind for kind in kinds if codes - 1 <= torch.iinfo(kind).max)


class _Encoder:
    def __init__(self, checkpoint: Checkpoint, device: torch.device, latents: bool) -> None:
        self.tokenizer = checkpoint.semantic_tokenizer(device=device, dtype=torch.float32)
        self.autoencoder = checkpoint.autoencoder(device=device, dtype=torch.float32) if latents else None
        self.limits, self.device = checkpoint.config.processor.limits, device
        self.integers = smallest_integers(self.tokenizer.model.vqmodel.config.num_embeddings)

    @torch.no_grad()
    def __call__(self, record: Record) -> Encoded:
        """A record's row, and its tensors by name."""
        tensors: dict[str, Tensor] = {}
        references = [reference_view(source, self.limits) for source in record.sources]
        views = [half_size_pixels(image) for image in (record.image, *references)]
        if not references:
            views.append(preview_view(record.image))
        codes = [one.cpu().to(self.integers) for one in encode_views(self.tokenizer, views, self.device)]
        if not references:
            tensors["preview"] = codes[-1]
        names = ["", *(f"reference-{place}/" for place in range(len(references)))]
        for name, own, image in zip(names, codes, (record.image, *references)):
            tensors[f"{name}codes"] = own
            if self.autoencoder is not None:
                values = pixels(image)[None].to(self.device)
                tensors[f"{name}latents"] = self.autoencoder.encode(values)[0].cpu().half()
        row = {
            "size": [record.image.height, record.image.width], "captions": record.captions, "task": record.task,
            "rating": record.rating, "references": len(references), "name": record.name,
        }  # fmt: skip
        return row, tensors
