"""The model that ships in the package: its size, and that it does what the README says of it."""

import numpy as np
import pytest

import arimage
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.domain import Domain
from arimage.checkpoints.embedded import SHIPPED
from arimage.checkpoints.information import network_sizes
from arimage.data.colors import BY_NAME
from arimage.evaluation.measures import named_color_found
from arimage.evaluation.reading import TextReader, word_similarity

if not (SHIPPED / "model_index.json").exists():
    pytest.skip("no trained model is shipped yet", allow_module_level=True)

SUBJECTS = ("fox", "cat", "rocket", "pizza", "guitar", "house")
COLORS = ("blue", "yellow", "red", "green", "pink", "white")


@pytest.fixture(scope="module")
def pictures() -> list[arimage.GeneratedImage]:
    prompts = [f"a {subject} on a {color} background" for subject, color in zip(SUBJECTS, COLORS)]
    return arimage.generate(prompts, size=256, seed=1, steps=8)


def test_it_is_small() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 40e6
    assert sum(path.stat().st_size for path in files if path.suffix != ".safetensors") <= 0.8e6
    assert sum(size.parameters for size in network_sizes(Checkpoint.open(SHIPPED).config)) <= 20e6
    assert not any(path.suffix in (".pt", ".pth", ".bin", ".pkl") for path in files)


def test_it_was_trained_and_says_what_it_knows() -> None:
    assert not Checkpoint.open(SHIPPED).is_random
    domain = Domain.read(SHIPPED)
    assert domain is not None
    assert len(domain.subjects) >= 300
    assert [note for note in domain.notes("a fox on a blue background") if note != domain.notice] == []


def test_backgrounds_have_the_colour_that_the_prompt_names(pictures: list[arimage.GeneratedImage]) -> None:
    right = [named_color_found(made.image, BY_NAME[color].rgb) for made, color in zip(pictures, COLORS)]
    assert sum(right) >= len(COLORS) - 1, right


def test_pictures_differ(pictures: list[arimage.GeneratedImage]) -> None:
    arrays = [np.asarray(made.image, np.int16) for made in pictures]
    assert all(np.abs(a - b).mean() > 3 for i, a in enumerate(arrays) for b in arrays[:i])


def test_english_words_can_be_read() -> None:
    words = ("OPEN", "MUSIC", "COFFEE", "SUMMER", "GARDEN", "RIVER")
    prompts = [f'the word "{word}" in white on a red background' for word in words]
    read = TextReader()
    made = arimage.generate(prompts, size=256, seed=1, steps=10)
    likeness = [word_similarity(word, read(picture.image)) for word, picture in zip(words, made)]
    assert sum(likeness) / len(likeness) >= 0.7, likeness
