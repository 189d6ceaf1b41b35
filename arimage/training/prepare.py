"""The prepared cache: a data set's visual tokens, latents and captions, encoded once.

    index.json                 what made it; of each shard how many samples it holds, its size and checksum
    shard-00000.safetensors    tensors by sample; shard-00000.json their captions, sizes and checksums

Which samples a shard holds follows from the config alone. So any number of processes, on machines that share the
folder, make one cache: each takes a shard that is not there yet, under a lock that ends with its process. Shards appear
whole or not at all, so preparing goes on where it stopped. The index names the shards up to the first that is not
there yet; it is written every ``INDEX_SECONDS`` and at the end.

The index holds a hash of the encoders' weights: a cache of other networks is refused, not silently trained on. For a
stage of the autoregressive model the latents, by far the most of the work, are left out, and the autoencoder is free to
change.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.data.records import Record
from arimage.errors import DataError, UsageError
from arimage.files import write_whole
from arimage.training.bad_samples import BadSample, BadSamples
from arimage.training.batches import StepBatches
from arimage.training.cache import INDEX, shard_entry, write_shard
from arimage.training.codes import encode_views, preview_view, reference_view
from arimage.training.config import TrainConfig
from arimage.training.kept_codes import kept_cells, with_kept_codes
from tokenizer.pixels import pixels
from tokenizer.semantic_tokenizer import half_size_pixels

INDEX_SECONDS = 60.0


@dataclass(frozen=True)
class Prepared:
    """What the index names by now, and how many of the data's samples cannot be used."""

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


@dataclass(frozen=True)
class Shard:
    """A shard of the plan: the steps whose batches it holds, without those that come from a cache."""

    name: str
    steps: range
    samples: int


def prepare(
    config: TrainConfig,
    folder: Path,
    count: int,
    shard: int,
    say: Callable[[str], None] = print,
    spread: Spread | None = None,
    process: int = 0,
    processes: int = 1,
) -> Prepared:
    """Encode the first ``count`` samples of a stage's data: visual tokens, and latents if the stage has use for them.

    What other processes are making at the end is left to them.

    Args:
        spread: has an encoder run on many records, in order, elsewhere: :func:`arimage.scale.spread.spread`. What is
            written does not depend on it.
        process, processes: which shards are tried first, so that processes seldom meet; others may be at work too.

    Raises:
        DataError: the folder holds a cache of other networks or settings, or too many samples are bad.
        UsageError: the stage has no data but caches.
    """
    if all(source.cache is not None for source in config.data):
        raise UsageError("the stage has prepared caches alone; name the data itself")
    checkpoint = Checkpoint.open(config.start)
    data = [source.model_dump(mode="json") for source in config.data]
    latents = config.train != "autoregressive"
    about = {
        "encoders": encoders_hash(checkpoint, latents), "latents": latents, "data": data, "seed": config.seed,
        "shard": shard, "batch_size": config.batch_size,
    }  # fmt: skip
    kept = (config.decoder if latents else config.autoregressive).kept_codes
    if kept:
        about["kept_codes"] = True
    if any(source.path for source in config.data):
        about["placement"] = "pairs"
    batches = StepBatches(config.data, config.batch_size, lambda examples: {}, config.captions, seed=config.seed)
    about["order"] = batches.digests()
    cache = _Cache(folder, BadSamples(folder, config.max_bad_share, batches.sizes, shared=True))
    cache.bad_samples.add(batches.unreadable)
    cache.begin(about, count)
    plan = _plan(cache.shards, batches, count, shard)
    samples = {one.name: one.samples for one in plan}
    encoded = (
        _here(config.start, latents, kept)
        if spread is None
        else partial(spread, partial(_encoder, os.path.abspath(config.start), latents, kept))
    )
    numbers = sorted(range(len(plan)), key=lambda number: (number - process) % processes)
    for one in (plan[number] for number in numbers):
        if cache.finished(one.name):
            continue
        lock = FileLock(folder / f".{one.name}.lock")
        with suppress(Timeout), lock.acquire(blocking=False):
            cache.look()
            if not cache.finished(one.name):
                cache.tidy(one.name)
                records, bad = _read(one, batches, cache.bad_samples)
                last = {"next_step": one.steps.stop} | ({"bad": [astuple(sample) for sample in bad]} if bad else {})
                write_shard(folder, one.name, list(encoded(records)), last)
                cache.made(one.name)
                done = sum(samples[name] for name in samples if cache.finished(name))
                say(f"{done} of {sum(samples.values())} samples, {len(cache.bad_samples.found)} skipped")
            Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it finds the shard finished
    cache.update()
    return Prepared(sum(entry["samples"] for entry in cache.shards), len(cache.shards), len(cache.bad_samples.found))


def _plan(shards: list[dict[str, Any]], batches: StepBatches, count: int, shard: int) -> list[Shard]:
    """Shards that the index names, and those that follow up to ``count`` samples."""
    plan, step, done = [], 0, 0
    for entry in shards:
        plan.append(Shard(entry["name"], range(step, entry["next_step"]), entry["samples"]))
        step, done = entry["next_step"], done + entry["samples"]
    while done < count:
        first, samples = step, 0
        while samples < min(shard, count - done):
            samples += batches.batch_size if batches.configs[batches.turn(step)[0]].cache is None else 0
            step += 1
        plan.append(Shard(_name(len(plan)), range(first, step), samples))
        done += samples
    return plan


def _read(shard: Shard, batches: StepBatches, bad_samples: BadSamples) -> tuple[list[Record], list[BadSample]]:
    """The records of a shard, and what could not be read on the way."""
    records: list[Record] = []
    all_bad: list[BadSample] = []
    for step in shard.steps:
        examples, bad = batches.examples(step)
        all_bad += bad
        bad_samples.add(bad)
        excess = bad_samples.excess()
        if excess is not None:
            bad_samples.write()
            raise DataError(excess)
        records += [example.record for example in examples if isinstance(example.record, Record)]
    return records, all_bad


def _name(number: int) -> str:
    return f"shard-{number:05d}"


class _Cache:
    """A folder that several processes write to.

    Attributes:
        shards: what the index says of each, up to the first that is not finished.
    """

    def __init__(self, folder: Path, bad_samples: BadSamples) -> None:
        self.folder, self.bad_samples = folder, bad_samples
        self.shards: list[dict[str, Any]] = []
        self._lock = FileLock(folder / f".{INDEX}.lock")
        self._files: set[str] = set()
        self._made: set[str] = set()
        self._updated = 0.0

    def begin(self, about: dict[str, Any], count: int) -> None:
        """Tie the folder to what makes its shards, and to how many samples are wanted.

        Raises:
            DataError: it is tied to something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if not (self.folder / INDEX).exists():
                self._write({"about": about, "count": count, "shards": []})
            index = self._index()
            before = {"latents": True, "order": about["order"], **index["about"]}  # older releases say less
            now = json.loads(json.dumps(about))
            changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
            if changed == {"order"}:
                raise DataError(
                    f"{self.folder} was begun before the data changed, and would miss samples and repeat others; "
                    "choose another folder"
                )
            if changed:
                raise DataError(f"{self.folder} holds a cache of other networks or settings; choose another folder")
            self.update()
            following = _name(len(self.shards))
            if shard_entry(self.folder, following) is None:  # an older release left it unfinished
                (self.folder / f"{following}.json").unlink(missing_ok=True)
            done, wanted = sum(entry["samples"] for entry in self.shards), index.get("count", count)
            if count > done and wanted > done and wanted != count:
                raise DataError(
                    f"{self.folder} is to hold {wanted} samples and has {done} so far; finish that first: -n {wanted}"
                )
            if count > done:
                self._write(self._index() | {"count": count})
        self.look()

    def look(self) -> None:
        """See which files are there."""
        self._files = set(os.listdir(self.folder))

    def finished(self, name: str) -> bool:
        """Whether a shard was there when the folder was last looked at."""
        return {f"{name}.safetensors", f"{name}.json"} <= self._files

    def tidy(self, name: str) -> None:
        """Remove what is left of a shard that is not finished."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        for file in self._files:
            if file.startswith(f".{name}.") and file.endswith(".part"):
                (self.folder / file).unlink(missing_ok=True)

    def made(self, name: str) -> None:
        """Take a shard that this process wrote into the index, if it is time."""
        self._made.add(name)
        self.look()
        if time.monotonic() - self._updated > INDEX_SECONDS:
            self.update()

    def update(self) -> None:
        """Take finished shards into the index, and what could not be read into ``bad-samples.txt``.

        Raises:
            DataError: too many samples are bad.
        """
        with self._lock:
            index = self._index()
            before = json.dumps(index)
            self.shards = index["shards"]
            for number, entry in enumerate(self.shards):
                if entry["name"] in self._made:
                    self.shards[number] = shard_entry(self.folder, entry["name"]) or entry
            while (following := shard_entry(self.folder, _name(len(self.shards)))) is not None:
                self.shards.append(following)
            if json.dumps(index) != before:
                self._write(index)
            self.bad_samples.add(BadSample(*one) for entry in self.shards for one in entry.get("bad", ()))
            self.bad_samples.write()
        self._made.clear()
        self._updated = time.monotonic()
        excess = self.bad_samples.excess()
        if excess is not None:
            raise DataError(excess)

    def _index(self) -> dict[str, Any]:
        return json.loads((self.folder / INDEX).read_text(encoding="utf-8"))

    def _write(self, index: dict[str, Any]) -> None:
        write_whole(self.folder / INDEX, json.dumps(index, indent=1).encode())


def _here(start: str, latents: bool, kept: bool) -> Callable[[Iterable[Record]], Iterator[Encoded]]:
    """An encoder of many records in this process."""
    encoder = _encoder(start, latents, kept)
    return lambda records: map(encoder, records)


def _encoder(start: str, latents: bool, kept: bool) -> Callable[[Record], Encoded]:
    return _Encoder(Checkpoint.open(start), _device(), latents, kept)


def _device() -> torch.device:
    """The accelerator of this process among those of its machine; processes need not know of each other."""
    if not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
    return torch.device(str(torch.accelerator.current_accelerator()), number)


def smallest_integers(codes: int) -> torch.dtype:
    """The smallest type that holds the numbers of so many codes."""
    kinds = (torch.uint8, torch.int16, torch.int32)
    return next(kind for kind in kinds if codes - 1 <= torch.iinfo(kind).max)


class _Encoder:
    def __init__(self, checkpoint: Checkpoint, device: torch.device, latents: bool, kept: bool) -> None:
        self.tokenizer = checkpoint.semantic_tokenizer(device=device, dtype=torch.float32)
        self.autoencoder = checkpoint.autoencoder(device=device, dtype=torch.float32) if latents else None
        self.limits, self.device, self.kept = checkpoint.config.processor.limits, device, kept
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
        if self.kept:
            codes[0] = with_kept_codes(codes[0], codes[1:], kept_cells(record, self.limits))
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
