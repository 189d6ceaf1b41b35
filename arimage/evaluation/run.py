"""An evaluation from its config to its report."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from arimage.data.assets import Assets
from arimage.data.scenes import Scenes
from arimage.data.scenes.settings import PICTURE_TASKS, Held, SceneSettings
from arimage.evaluation.cases import Case, cases
from arimage.evaluation.codes import characters, counted_cells, stability
from arimage.evaluation.config import EvaluateConfig
from arimage.evaluation.features import kernel_distance
from arimage.evaluation.judge import Judge, Share
from arimage.images.masks import EditMask
from arimage.inference.api import load
from arimage.inference.pipeline import ImagePipeline
from arimage.inference.requests import EngineImage, ImageRequest

RESAMPLES = 2000
IDLE_GREEDY = ("top_p", "top_k", "min_p")
IDLE_UNGUIDED = ("guidance_interval", "negative_text")
THINGS: dict[str, Held | None] = {"codes kept": None, "codes kept, concept never seen": "reference concept"}


@dataclass(frozen=True)
class Outcome:
    """A case, the picture that was made for it, and what was right about it and about the true scene."""

    case: Case
    picture: Image.Image
    shares: dict[str, Share]
    ceiling: dict[str, Share]


@dataclass(frozen=True)
class Row:
    """An ability: the share of its points, with a 95 % interval.

    Attributes:
        cases: pictures that count.
        ceiling: the same of the true scenes.
        by_language: the share for prompts in each language.
    """

    ability: str
    cases: int
    share: float
    low: float
    high: float
    ceiling: float
    by_language: dict[str, float]

    @property
    def gap(self) -> float:
        """Between the languages, in points of a hundred."""
        values = list(self.by_language.values())
        return 100 * (max(values) - min(values)) if values else 0.0


def make_judge(config: EvaluateConfig) -> Judge:
    """The judge of an evaluation; it compares with all concepts and styles of the first group."""
    assets = Assets.open(config.assets)
    composer = Scenes(assets, next(iter(config.groups.values())).scenes).composer
    return Judge(assets, composer.concepts, composer.styles)


Spread = Callable[
    [Callable[[], Callable[[Sequence[Case]], list[Image.Image]]], Iterable[Sequence[Case]]], Iterator[list[Image.Image]]
]


def evaluate(
    config: EvaluateConfig,
    pipeline: ImagePipeline,
    judge: Judge,
    say: Callable[[str], None] = print,
    spread: Spread | None = None,
) -> list[Outcome]:
    """Make and judge every picture of an evaluation.

    Args:
        spread: has pictures of many batches made elsewhere, in order: :func:`arimage.scale.spread.spread`. They are the
            same pictures.
    """
    outcomes: list[Outcome] = []
    for group in config.groups:
        wanted = cases(config, judge.assets, group)
        ceilings: dict[int, dict[str, Share]] = {}
        batches = list(_batches(wanted, config.batch))
        if config.part == "autoregressive":
            for batch in batches:
                outcomes += _of_codes(batch, pipeline, config)
            batches = []
        made: Iterable[list[Image.Image]] = (pictures(batch, pipeline, config) for batch in batches)
        if spread is not None:
            made = spread(partial(_maker, config.model_copy(update={"model": _absolute(config.model)})), batches)
        for batch, several in zip(batches, made):
            for case, picture in zip(batch, several):
                if case.index not in ceilings:
                    ceilings[case.index] = judge(case, case.record.image)
                outcomes.append(Outcome(case, picture, judge(case, picture), ceilings[case.index]))
        found = rows([outcome for outcome in outcomes if outcome.case.group == group])
        what = "grids" if config.part == "autoregressive" else "pictures"
        say(f"{group}: {len(wanted)} {what}, " + ", ".join(f"{r.ability} {100 * r.share:.0f} %" for r in found))
    return outcomes


def _absolute(model: str | None) -> str | None:
    """A folder as it is called from everywhere."""
    return os.path.abspath(model) if model is not None and os.path.isdir(model) else model


def _maker(config: EvaluateConfig) -> Callable[[Sequence[Case]], list[Image.Image]]:
    """What makes the pictures of a batch, with a model of its own."""
    pipeline = load(config.model)
    return lambda batch: pictures(batch, pipeline, config)


def tokenizer_rows(config: EvaluateConfig, pipeline: ImagePipeline, assets: Assets) -> list[Row]:
    """The rows of ``part: tokenizer``; see :mod:`arimage.evaluation.codes`."""
    scenes = SceneSettings.model_validate({**config.scenes, "split": "evaluation"})
    count = 2 * config.cases
    named: dict[str, list[Share]] = {}
    with pipeline.networks.use("semantic_tokenizer") as tokenizer:
        for things, held in THINGS.items():
            shown = scenes.model_copy(update={"held": held})
            for change, found in stability(tokenizer, assets, shown, count, config.seed).items():
                named[f"{things}: {change}"] = found
        words = scenes.model_copy(update={"held": "word"})
        named["characters from codes"] = characters(tokenizer, assets, _as_training(scenes), words, count)
    return [
        Row(name, len(found), pooled(found), *interval(found), ceiling=1.0, by_language={})
        for name, found in named.items()
    ]


def pictures(batch: Sequence[Case], pipeline: ImagePipeline, config: EvaluateConfig) -> list[Image.Image]:
    """The pictures of some cases, made in one call of the engine."""
    if config.part == "autoencoder":
        return [pipeline.engine.reconstruct(case.record.image) for case in batch]
    tokens: Sequence[Tensor | None] = [None] * len(batch)
    if config.part == "decoder":
        with pipeline.networks.use("semantic_tokenizer") as tokenizer:
            tokens = tokenizer.encode([case.record.image.convert("RGB") for case in batch])
    return [made.image for made in _made(batch, pipeline, config, config.options, tokens)]


def _made(
    batch: Sequence[Case],
    pipeline: ImagePipeline,
    config: EvaluateConfig,
    options: Mapping[str, Any],
    tokens: Sequence[Tensor | None],
) -> list[EngineImage]:
    """What the engine makes of some cases; a part alone starts second edits from the true picture between."""
    sources = [case.record.sources if case.second is None else (case.second.source,) for case in batch]
    chained = [place for place, case in enumerate(batch) if case.second is not None]
    if chained and config.part == "model":
        firsts = [_request(batch[place], config, batch[place].prompt, batch[place].record.sources) for place in chained]
        for place, made in zip(chained, pipeline.make(firsts, **options)):
            sources[place] = (made.image,)
    prompts = [case.prompt if case.second is None else case.second.prompt for case in batch]
    requests = [
        replace(_request(case, config, prompt, pictures), codes=codes)
        for case, prompt, pictures, codes in zip(batch, prompts, sources, tokens)
    ]
    return pipeline.make(requests, **options)


def _request(case: Case, config: EvaluateConfig, prompt: str, sources: tuple[Image.Image, ...]) -> ImageRequest:
    size, mask = case.record.image.size[::-1], case.record.mask
    if mask is None:
        return ImageRequest(prompt, size, config.seed + case.index, sources)
    return ImageRequest(prompt, size, config.seed + case.index, sources, sources[-1], EditMask(mask))


def _of_codes(batch: Sequence[Case], pipeline: ImagePipeline, config: EvaluateConfig) -> list[Outcome]:
    """How many of the generated codes are the true picture's, each greedily drawn and as the options say."""
    options = {name: value for name, value in config.options.items() if name not in IDLE_UNGUIDED}
    options |= {"steps": 1, "guidance": 1.0}
    greedy = {name: value for name, value in options.items() if name not in IDLE_GREEDY} | {"temperature": 0.0}
    none = [None] * len(batch)
    made = {
        "greedy": _made(batch, pipeline, config, greedy, none),
        "drawn": _made(batch, pipeline, config, options, none),
    }
    with pipeline.networks.use("semantic_tokenizer") as tokenizer:
        counted = [counted_cells(tokenizer, case.record) for case in batch]
    outcomes = []
    for place, (case, (true, cells)) in enumerate(zip(batch, counted)):
        shares: dict[str, Share] = {}
        for kind, chosen in cells.items():
            for how, images in made.items():
                right = float((images[place].codes.cpu() == true)[chosen].sum())
                shares[f"{case.group}: {kind}, {how}"] = right, float(chosen.sum())
        whole = {name: (of, of) for name, (_, of) in shares.items()}
        outcomes.append(Outcome(case, made["drawn"][place].image, shares, whole))
    return outcomes


def _batches(wanted: Sequence[Case], size: int) -> Iterator[list[Case]]:
    for start in range(0, len(wanted), size):
        yield list(wanted[start : start + size])


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """The table, in the order in which abilities first appear."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.shares)
    return [_row(name, [outcome for outcome in outcomes if name in outcome.shares]) for name in names]


def _row(ability: str, outcomes: Sequence[Outcome]) -> Row:
    shares = [outcome.shares[ability] for outcome in outcomes]
    share = pooled(shares)
    low, high = interval(shares)
    languages = dict.fromkeys(outcome.case.language for outcome in outcomes)
    by_language = {
        language: pooled([o.shares[ability] for o in outcomes if o.case.language == language]) for language in languages
    }
    ceiling = pooled([outcome.ceiling[ability] for outcome in outcomes])
    return Row(ability, len(outcomes), share, low, high, ceiling, by_language)


def pooled(shares: Sequence[Share]) -> float:
    total = sum(of for _, of in shares)
    return sum(points for points, _ in shares) / total if total else 0.0


def interval(shares: Sequence[Share]) -> tuple[float, float]:
    """95 %: Wilson's for yes and no, a bootstrap over pictures for pooled shares."""
    if all(of == 1 and points in (0, 1) for points, of in shares):
        n, p, z = len(shares), pooled(shares), 1.96
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
    table = np.array(shares, np.float64)
    chosen = np.random.default_rng(0).integers(len(table), size=(RESAMPLES, len(table)))
    sums = table[chosen].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / np.maximum(sums[:, 1], 1e-9), (0.025, 0.975))
    return float(low), float(high)


def distances(outcomes: Sequence[Outcome], config: EvaluateConfig, judge: Judge) -> dict[str, float]:
    """How far pictures from text are from true scenes, and from their nearest training scene.

    ``kid`` compares the pictures with as many other true scenes, ``kid_floor`` true scenes with those; both on the
    features of :class:`~arimage.evaluation.features.PictureFeatures`. ``nearest_training`` is the mean cosine
    similarity of a picture to the most similar of ``training`` training scenes, ``nearest_training_real`` that of the
    held-out true scenes. Prompts in own words do not count.
    """
    chosen = [o for o in outcomes if o.case.record.task in PICTURE_TASKS and o.case.own_words is None]
    if len(chosen) < 2:
        return {}
    made = judge.features([outcome.picture for outcome in chosen])
    real = judge.features([outcome.case.record.image for outcome in chosen])
    others, training = [], []
    groups = {outcome.case.group: config.groups[outcome.case.group].scenes for outcome in chosen}
    for group, settings in groups.items():
        count = sum(outcome.case.group == group for outcome in chosen)
        fresh = Scenes(judge.assets, settings)
        others += [fresh[10_000 + index].image for index in range(count)]
        share = round(config.training * count / len(chosen))
        learnt = Scenes(judge.assets, _as_training(settings))
        training += [learnt[index].image for index in range(share)]
    other = judge.features(others)
    figures = {"kid": kernel_distance(made, other), "kid_floor": kernel_distance(real, other)}
    if training:
        known = judge.features(training)
        figures["nearest_training"] = float((made @ known.T).amax(dim=1).mean())
        figures["nearest_training_real"] = float((real @ known.T).amax(dim=1).mean())
    return figures


def _as_training(settings: SceneSettings) -> SceneSettings:
    return settings.model_copy(update={"split": "train", "held": None})
