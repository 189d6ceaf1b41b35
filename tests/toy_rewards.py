"""Rewards for tests, as a user would write them."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BEST = 12


def low_codes(codes: Sequence[Tensor], prompts: Sequence[str], truths: Sequence[dict[str, Any]]) -> list[float]:
    """The share of visual tokens below 12: the best answer has no others."""
    return [float((one < BEST).float().mean()) for one in codes]


def brightness(
    pictures: Sequence[Image.Image], prompts: Sequence[str], truths: Sequence[dict[str, Any]]
) -> list[float]:
    """The mean of all pixels, in [0, 1]."""
    return [float(np.asarray(picture).mean()) / 255 for picture in pictures]


def even(pictures: Sequence[Any], prompts: Sequence[str], truths: Sequence[dict[str, Any]]) -> list[float]:
    """The same for every picture."""
    return [1.0] * len(pictures)


def in_own_precision(
    pictures: Sequence[Image.Image], prompts: Sequence[str], truths: Sequence[dict[str, Any]]
) -> list[float]:
    """Whether autocast is off."""
    return [float(not torch.is_autocast_enabled("cpu"))] * len(pictures)


def raising(pictures: Sequence[Any], prompts: Sequence[str], truths: Sequence[dict[str, Any]]) -> list[float]:
    raise KeyError("no such thing")


def no_number(pictures: Sequence[Any], prompts: Sequence[str], truths: Sequence[dict[str, Any]]) -> list[float]:
    return [float("nan")] * len(pictures)


def too_few(pictures: Sequence[Any], prompts: Sequence[str], truths: Sequence[dict[str, Any]]) -> list[float]:
    return [1.0]


def hanging(pictures: Sequence[Any], prompts: Sequence[str], truths: Sequence[dict[str, Any]]) -> list[float]:
    time.sleep(600)
    return [1.0] * len(pictures)
