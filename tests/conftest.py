"""Fixtures that several test modules share."""

import numpy as np
import pytest
from PIL import Image

from arimage.inference.api import load
from arimage.inference.pipeline import ImagePipeline
from tests.tiny_checkpoint import tiny_folder


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory):
    """A small checkpoint with random weights."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pipeline(checkpoint_folder) -> ImagePipeline:
    """It, loaded."""
    return load(checkpoint_folder, device="cpu")


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth random picture."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (max(2, height // 16), max(2, width // 16), 4), dtype=np.uint8)
    return Image.fromarray(small, "RGBA").resize((width, height), Image.Resampling.BICUBIC).convert(mode)
