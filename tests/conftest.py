"""Fixtures that several test modules share."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from arimage.inference.api import load
from arimage.inference.pipeline import ImagePipeline
from tests.chat import Chat
from tests.tiny_checkpoint import tiny_folder

# Seconds of the tests that take longest, by the beginnings of their names; those of one module share fixtures.
LONG = {
    "tests/test_plan.py::test_the_recipe": 100, "tests/test_golden_losses.py": 150, "tests/test_nano.py": 65,
    "tests/test_training_distributed.py": 60, "tests/test_benchmarks.py": 80, "tests/test_cli.py::test_a_killed": 25,
    "tests/test_training.py": 160, "tests/test_server_soak.py": 30, "tests/test_reinforcement.py": 60,
    "tests/test_page.py": 40,
}  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, each begins with long ones, so that none is left for the end."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        items[:] = longest_first(items, workers)


def longest_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests in as many equal parts as there are workers, which xdist deals out so, long ones at their beginning."""
    groups: dict[str, list[pytest.Item]] = {beginning: [] for beginning in LONG}
    others: list[pytest.Item] = []
    for item in items:
        beginning = next((name for name in LONG if item.nodeid.startswith(name)), None)
        (others if beginning is None else groups[beginning]).append(item)
    hands: list[list[pytest.Item]] = [[] for _ in range(workers)]
    seconds = [0] * workers
    for beginning in sorted(groups, key=LONG.__getitem__, reverse=True):
        hand = seconds.index(min(seconds))
        hands[hand] += groups[beginning]
        seconds[hand] += LONG[beginning]
    rest, dealt, left = iter(others), [], len(items)
    for number, hand in enumerate(hands):
        part = left // (workers - number)
        left -= part
        dealt += [*hand, *islice(rest, max(0, part - len(hand)))]
    return [*dealt, *rest]


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory):
    """A small checkpoint with random weights."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pipeline(checkpoint_folder) -> ImagePipeline:
    """It, loaded."""
    return load(checkpoint_folder, device="cpu")


@pytest.fixture
def chat() -> Iterator[Chat]:
    """A chat endpoint that says what it is told to."""
    endpoint = Chat()
    yield endpoint
    endpoint.close()


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth random picture."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (max(2, height // 16), max(2, width // 16), 4), dtype=np.uint8)
    return Image.fromarray(small, "RGBA").resize((width, height), Image.Resampling.BICUBIC).convert(mode)
