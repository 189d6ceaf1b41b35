"""Pictures from fixed prompts and fixed edits, with the weights as they are in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.data.records import Record
from arimage.images.sheets import beside, contact_sheet
from arimage.inference.engine import Engine
from arimage.inference.networks import Networks
from arimage.inference.requests import ImageRequest
from arimage.inference.settings import Settings
from arimage.training.batches import StepBatches
from arimage.training.codes import encode_views, reference_view
from arimage.training.config import SampleConfig
from arimage.training.examples import Example
from arimage.training.objective import Objective
from decoder.diffusion_decoder import DecoderSettings


def training_pictures(
    objective: Objective, checkpoint: Checkpoint, config: SampleConfig, batches: StepBatches
) -> list[tuple[str, Image.Image]]:
    """The objective's own pictures of the first batch, then those of fixed prompts and edits."""
    examples = [example for example in batches.examples(0)[0] if isinstance(example.record, Record)]
    shown = objective.pictures(examples)
    if config.prompts or config.edits:
        shown += sample_pictures(objective, checkpoint, config, batches)
    return shown


def write_pictures(shown: Sequence[tuple[str, Image.Image]], folder: Path, step: int, trackers: Sequence[Any]) -> None:
    """Pictures as a sheet under ``folder``, and one by one in the trackers that take some."""
    folder.mkdir(parents=True, exist_ok=True)
    if shown:
        contact_sheet([image for _, image in shown], 4, gap=4, margin=0).save(folder / f"step-{step:08d}.png")
    for tracker in trackers:
        if hasattr(tracker, "log_images"):
            arrays = {name: np.asarray(image)[None] for name, image in shown}
            tracker.log_images(arrays, step=step, dataformats="NHWC")


def sample_pictures(
    objective: Objective, checkpoint: Checkpoint, config: SampleConfig, batches: StepBatches
) -> list[tuple[str, Image.Image]]:
    """Pictures by prompt, then edits of fixed records (source and result side by side)."""
    networks = LiveNetworks(checkpoint, objective.device, objective.live_networks())
    engine = Engine(networks)
    settings = Settings(DecoderSettings(steps=config.steps, guidance=config.guidance))
    height, width = config.size[1], config.size[0]
    requests: list[ImageRequest] = []
    names: list[str] = []
    sources: list[Image.Image | None] = []
    for prompt in config.prompts:
        requests.append(ImageRequest(prompt, (height, width), config.seed))
        names.append(prompt)
        sources.append(None)
    for example in _edits(batches, config.edits):
        record = example.pictured
        caption = next(iter(record.captions.values()))
        target = record.image
        references = tuple(reference_view(source, engine.limits) for source in record.sources)
        requests.append(ImageRequest(caption, (target.height, target.width), config.seed, references))
        names.append(caption)
        sources.append(record.sources[-1])
    made = [result.image for result in engine.run(requests, settings)]
    return [
        (name, image if source is None else beside(source, image)) for name, image, source in zip(names, made, sources)
    ]


class LiveNetworks(Networks):
    """The checkpoint's networks with those in training, ``live``, in their place."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        live: Mapping[str, Any],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(checkpoint, device, dtype)
        self._loaded.update(live)


def _edits(batches: StepBatches, count: int) -> list[Example]:
    found: list[Example] = []
    step = 0
    while len(found) < count and step < 200:
        found += [
            example
            for example in batches.examples(step)[0]
            if isinstance(example.record, Record) and example.record.sources
        ]
        step += 1
    return found[:count]


def pictures_from_codes(
    objective: Any, examples: Sequence[Example], steps: int, guidance: float
) -> list[tuple[str, Image.Image]]:
    """The decoder alone: pictures rendered from the true codes, beside the true pictures."""
    from arimage.training.objective import noise_of
    from decoder.diffusion_decoder import DecodeRequest, DiffusionDecoder, Reference
    from decoder.glyph import quoted_texts
    from tokenizer.pixels import picture, pixels
    from tokenizer.semantic_tokenizer import half_size_pixels

    networks = objective.live_networks()
    glyph_encoder, tokenizer = networks["glyph_encoder"], objective.helpers["tokenizer"]
    autoencoder = objective.helpers["autoencoder"]
    decoder = DiffusionDecoder(networks["transformer"], objective.schedule)
    shown = []
    for number, example in enumerate(examples):
        record = example.pictured
        views = [reference_view(source, objective.limits) for source in record.sources]
        seen = [half_size_pixels(image) for image in (record.image, *views)]
        codes = encode_views(tokenizer, seen, objective.device)
        references = tuple(
            Reference(autoencoder.encode(pixels(view)[None].to(objective.device))[0], own)
            for view, own in zip(views, codes[1:])
        )
        glyphs, negative = glyph_encoder.encode([quoted_texts(example.caption)])[0][0], glyph_encoder.encode([[]])[0][0]
        height, width = codes[0].shape
        noise = noise_of([number], (objective.dimensions.transformer.in_channels, 4 * height, 4 * width))[0]
        request = DecodeRequest(codes[0], glyphs, negative, references, noise.to(objective.device))
        latents = decoder.sample([request], DecoderSettings(steps=steps, guidance=guidance))[0]
        made = picture(autoencoder.decode(latents[None])[0])
        shown.append((f"from true codes {number}", beside(record.image, made)))
    return shown
