"""What makes a picture good: rewards, each a function of pictures, their prompts and what is true of them.

    score(pictures, prompts, truths) -> a number for each picture, or None where it has nothing to say

Built in are what evaluations measure with; a function or a service of one's own has the same three arguments:

    def score(pictures, prompts, truths):            # PIL pictures, texts, dictionaries
        return [0.5 for _ in pictures]               # numbers, one each

    POST url  {"images": [base64 of PNG], "prompts": [...], "truths": [...]}  ->  {"scores": [...]}

A truth holds ``task``, ``language``, ``texts`` (that the prompt quotes) and, of scenes, ``scene`` (what is where).
"""

import base64
import importlib
import importlib.util
import io
import json
import math
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.data.assets import Assets
from arimage.data.records import PROMPT_ONLY, Record
from arimage.data.scenes import Scenes, SceneSettings
from arimage.errors import DataError, UsageError
from arimage.evaluation.cases import Case
from arimage.evaluation.codes import counted_cells
from arimage.evaluation.features import PictureFeatures
from arimage.evaluation.judge import Judge
from arimage.evaluation.lpips import Lpips
from arimage.evaluation.reading import TextReader, characters_found, edit_distance, words_found
from arimage.training.reinforcement.config import RewardConfig
from decoder.glyph import quoted_texts
from tokenizer.pixels import pixels
from tokenizer.semantic_tokenizer import SemanticTokenizer

Score = Callable[[Sequence[Any], Sequence[str], Sequence["Truth"]], Sequence[float | None]]
CHINESE = range(0x4E00, 0xA000)
MOST_SECONDS = 600.0


@dataclass(frozen=True)
class Truth:
    """What is known about the picture that a prompt asks for: its record."""

    prompt: str
    record: Record

    @property
    def language(self) -> str:
        """``zh`` where the prompt holds Chinese characters outside of quotes or no others, else ``en``."""
        outside = self.prompt
        for text in self.texts:
            outside = outside.replace(text, "")
        return "zh" if any(ord(character) in CHINESE for character in outside) else "en"

    @property
    def texts(self) -> list[str]:
        """What the prompt quotes."""
        return quoted_texts(self.prompt)

    @property
    def shown(self) -> list[str]:
        """The texts that the picture should show: of a scene the one that stands there, so that an edit is not
        rewarded for the text that it replaces; else what the prompt quotes."""
        scene = self.record.truth.get("spec")
        if scene is None:
            return self.texts
        lettering = scene["lettering"]
        return [] if lettering is None else [lettering["text"]]

    def as_json(self) -> dict[str, Any]:
        """Plain data, for functions and services."""
        facts = json.loads(json.dumps(self.record.truth, default=str))
        return {"task": self.record.task, "language": self.language, "texts": self.texts, "scene": facts}


@dataclass(frozen=True)
class Instruments:
    """What rewards are measured with, each made when it is first used.

    Attributes:
        assets, scenes: of the scenes that are judged; None where the stage has none.
        start: the checkpoint that the stage starts from, whose tokenizer encodes true pictures.
    """

    assets: str | None = None
    scenes: SceneSettings | None = None
    start: str | None = None

    @cached_property
    def judge(self) -> Judge:
        if self.assets is None or self.scenes is None:
            raise DataError("kind: judge judges scenes, and the stage's data has none")
        assets = Assets.open(self.assets)
        composer = Scenes(assets, self.scenes).composer
        return Judge(assets, composer.concepts, composer.styles)

    @cached_property
    def tokenizer(self) -> SemanticTokenizer:
        if self.start is None:
            raise DataError("kind: codes needs the checkpoint that the stage starts from")
        return Checkpoint.open(self.start).semantic_tokenizer(device=torch.device("cpu"), dtype=torch.float32)

    @cached_property
    def reader(self) -> TextReader:
        return TextReader()

    @cached_property
    def lpips(self) -> Lpips:
        return Lpips()

    @cached_property
    def features(self) -> PictureFeatures:
        return PictureFeatures()


def make_reward(config: RewardConfig, instruments: Instruments) -> Score:
    """The function of a reward.

    Raises:
        UsageError: a function of one's own cannot be found.
        DataError: a package is missing.
    """
    if config.kind == "ocr":
        return partial(_each, partial(text_score, instruments.reader))
    if config.kind == "judge":
        assert config.ability is not None
        return partial(_each, partial(_judged, instruments.judge, config.ability))
    if config.kind == "similarity":
        return partial(_each, partial(_similarity, instruments.lpips, instruments.features))
    if config.kind == "codes":
        return partial(_codes_right, instruments.tokenizer)
    if config.kind == "python":
        assert config.function is not None
        return partial(_called, find_function(config.function))
    assert config.url is not None
    return partial(_asked, config.url)


def checked(scores: Any, count: int) -> list[float | None]:
    """Scores as they must be.

    Raises:
        ValueError: there are too few or too many, or one is no finite number.
    """
    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != count:
        given = f"{len(scores)}" if isinstance(scores, Sequence) else f"a {type(scores).__name__}"
        raise ValueError(f"it gave {given} for {count} pictures; a list of one number each is needed")
    values: list[float | None] = []
    for score in scores:
        value = None if score is None else float(score)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"it gave {value}; rewards are finite numbers")
        values.append(value)
    return values


def _each(score: Callable[[Image.Image, Truth], float | None], pictures: Any, prompts: Any, truths: Any) -> list[Any]:
    return [score(picture, truth) for picture, truth in zip(pictures, truths)]


def text_score(read: Callable[[Image.Image], list[str]], picture: Image.Image, truth: Truth) -> float | None:
    """How well a picture shows the texts that it should, in [0, 1]; None where there are none.

    The mean of the share of words found (of Chinese: characters) and of 1 - edit distance / longer length over all that
    was read, so that a text that stands there twice, or among others, is not as good as the text alone.
    """
    if not truth.shown:
        return None
    wanted, lines = " ".join(truth.shown), read(picture)
    found, of = characters_found(wanted, lines)
    latin = "".join(" " if ord(character) in CHINESE else character for character in wanted)
    words, of_words = words_found(latin, lines)
    right = (found + words) / max(1, of + of_words)
    whole, seen = ("".join(text.lower().split()) for text in (wanted, "".join(lines)))
    return (right + 1 - edit_distance(whole, seen) / max(1, len(whole), len(seen))) / 2


def _judged(judge: Judge, ability: str, picture: Image.Image, truth: Truth) -> float | None:
    """The share of an ability's points, None where it is not what the scene asks for."""
    if "spec" not in truth.record.truth:
        return None
    case = Case("reward", 0, truth.language, truth.prompt, truth.record)
    points, of = judge.ability(ability, case, picture) or (0.0, 0.0)
    return points / of if of else None


def _similarity(lpips: Lpips, features: PictureFeatures, picture: Image.Image, truth: Truth) -> float | None:
    """The mean of 1 - LPIPS and of the cosine of features, to the true picture: 1 for the same; None where there is
    none."""
    if truth.record.task == PROMPT_ONLY:
        return None
    true = truth.record.image.convert("RGB")
    made = picture.convert("RGB").resize(true.size)
    distance = float(lpips(pixels(made)[None], pixels(true)[None])[0])
    first, second = features([made, true])
    return (1 - distance + float(first @ second)) / 2


@torch.no_grad()
def _codes_right(
    tokenizer: SemanticTokenizer, grids: Sequence[Tensor], prompts: Sequence[str], truths: Sequence[Truth]
) -> list[float | None]:
    """The share of a true picture's codes that a grid (h, w) has at their places; None where there is no true picture.

    Of scenes those cells count that show something, and in edits what is kept as much as what changes.
    """
    scores: list[float | None] = []
    record, true, counted = None, torch.empty(0), list[Tensor]()
    for grid, truth in zip(grids, truths):
        if truth.record.task == PROMPT_ONLY:
            scores.append(None)
            continue
        if truth.record is not record:
            record = truth.record
            if "spec" in record.truth:
                true, cells = counted_cells(tokenizer, record)
                counted = list(cells.values())
            else:
                true, counted = tokenizer.encode([record.image.convert("RGB")])[0], []
        right = grid == true
        shares = [float(right[cells].float().mean()) for cells in counted] or [float(right.float().mean())]
        scores.append(sum(shares) / len(shares))
    return scores


def find_function(place: str) -> Callable[..., Any]:
    """``package.module:function`` or ``file.py:function``.

    Raises:
        UsageError: there is none.
    """
    module, _, name = place.rpartition(":")
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module).stem, module)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
        else:
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))  # where the stage is run, as for `python -m`
            loaded = importlib.import_module(module)
        return getattr(loaded, name)
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        raise UsageError(f"function: {place} cannot be found: {' '.join(str(error).split())}") from None


def _called(function: Callable[..., Any], pictures: Any, prompts: Any, truths: Sequence[Truth]) -> list[float | None]:
    return checked(function(list(pictures), list(prompts), [truth.as_json() for truth in truths]), len(pictures))


def _asked(url: str, pictures: Sequence[Image.Image], prompts: Any, truths: Sequence[Truth]) -> list[float | None]:
    """What a service gives."""
    asked = {
        "images": [base64.b64encode(_png(picture)).decode() for picture in pictures],
        "prompts": list(prompts), "truths": [truth.as_json() for truth in truths],
    }  # fmt: skip
    request = urllib.request.Request(
        url, json.dumps(asked, ensure_ascii=False).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=MOST_SECONDS) as response:
            answer = json.loads(response.read())
    except (OSError, ValueError) as error:
        raise DataError(f"{url} did not answer as it should: {' '.join(str(error).split())}") from None
    if not isinstance(answer, Mapping) or "scores" not in answer:
        raise DataError(f'{url} must answer {{"scores": [...]}}')
    return checked(answer["scores"], len(pictures))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
