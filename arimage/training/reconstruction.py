"""How much of a picture survives the autoencoder: PSNR, SSIM, LPIPS, and whether texts can still be read.

What needs a package that is not installed (``arimage[eval]``) is left out of the figures.
"""

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arimage.evaluation import lpips
from arimage.evaluation.reading import optical_reader
from arimage.training.examples import Example
from tokenizer.pixels import picture, pixels


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@torch.no_grad()
def reconstruction_figures(
    examples: Sequence[Example], rebuild: Callable[[Tensor], Tensor], device: torch.device
) -> dict[str, float]:
    """Figures over whole pictures.

    Args:
        rebuild: (1, 3, H, W) in [-1, 1] to the same through the autoencoder.

    Returns:
        ``picture_psnr`` in dB; of the things that scenes show, ``thing_psnr``, the median in dB inside their boxes, and
        ``things_27db``, the share of them at 27 dB or better; ``ssim``, ``lpips`` where its weights are installed, and
        ``text_survival``: the share of the scenes' texts that a reader still finds in their box among those that it
        finds in the true picture.
    """
    true = [pixels(example.pictured.image)[None].to(device) for example in examples]
    made = [rebuild(image).clamp(-1, 1) for image in true]
    pairs = list(zip(true, made))
    errors = [((a - b) ** 2).mean() for a, b in pairs]
    figures = {"picture_psnr": float(torch.stack([10 * torch.log10(4 / error) for error in errors]).mean())}
    things = [
        float(10 * torch.log10(4 / ((a - b) ** 2)[..., top:bottom, left:right].mean().clamp(min=1e-9)))
        for (a, b), example in zip(pairs, examples)
        for left, top, right, bottom in example.pictured.truth.get("subjects", ())
    ]
    if things:
        figures["thing_psnr"] = statistics.median(things)
        figures["things_27db"] = sum(value >= 27 for value in things) / len(things)
    if installed("torchmetrics"):
        from torchmetrics.functional.image import structural_similarity_index_measure

        values = [float(structural_similarity_index_measure(b, a, data_range=2.0)) for a, b in pairs]
        figures["ssim"] = sum(values) / len(values)
    if lpips.available():
        distance = lpips.Lpips()
        figures["lpips"] = sum(float(distance(a.cpu(), b.cpu())) for a, b in pairs) / len(pairs)
    if installed("rapidocr"):
        survival = _text_survival(examples, made)
        if survival is not None:
            figures["text_survival"] = survival
    return figures


def _text_survival(examples: Sequence[Example], made: Sequence[Tensor]) -> float | None:
    reader = optical_reader()
    read, kept = 0, 0
    for example, image in zip(examples, made):
        truth = example.pictured.truth
        if not truth.get("text"):
            continue
        text = _plain(truth["spec"]["lettering"]["text"])
        if text in _read(reader, example.pictured.image, truth["text"]):
            read += 1
            kept += text in _read(reader, picture(image[0]), truth["text"])
    return kept / read if read else None


def _read(reader: Any, image: Any, box: tuple[int, int, int, int]) -> str:
    margin = round(0.15 * (box[3] - box[1]))
    crop = image.crop((max(0, box[0] - margin), max(0, box[1] - margin), box[2] + margin, box[3] + margin))
    result = reader(np.asarray(crop)[:, :, ::-1], use_det=False, use_cls=False, use_rec=True)
    return _plain("".join(result.txts or ()))


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
