"""What both halves need around a rollout: pictures of the weights as they are, their rewards, and what is watched."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.data.records import PROMPT_ONLY, Record
from arimage.errors import DataError
from arimage.evaluation.features import PictureFeatures, kernel_distance
from arimage.inference.engine import Engine
from arimage.inference.networks import choose_dtype
from arimage.inference.requests import EngineImage, ImageRequest
from arimage.inference.settings import Settings, settings_from
from arimage.training.batches import RolloutPlace
from arimage.training.codes import reference_view
from arimage.training.config import TrainConfig
from arimage.training.examples import Example
from arimage.training.guards import TrainingStopped
from arimage.training.objective import Losses, Objective
from arimage.training.reinforcement.config import RewardsConfig
from arimage.training.reinforcement.pool import RewardPool
from arimage.training.reinforcement.rewards import Instruments, Truth
from arimage.training.samples import LiveNetworks

Made = TypeVar("Made")
SEEDS = 2**62
ANOTHER = 0x9E3779B97F4A7C15 >> 2


@dataclass(frozen=True)
class Asked:
    """A prompt of a batch: the request for its picture, what is true of it, and the seed of its random numbers."""

    request: ImageRequest
    truth: Truth
    seed: int

    def picture_seed(self, number: int) -> int:
        """Of one of its pictures."""
        return (self.seed ^ ANOTHER * number) % SEEDS


@dataclass(frozen=True)
class Judged:
    """A group of pictures that is being judged.

    Attributes:
        tasks: of each reward, its number in the pool.
        places: of each picture of the group, which of the pictures of the tasks it is.
    """

    tasks: Sequence[int]
    places: Sequence[int]


def asked(examples: Sequence[Example], limits: Any) -> list[Asked]:
    """The prompts of a batch.

    Raises:
        DataError: an example has no picture.
    """
    found = []
    for example in examples:
        record: Record = example.pictured
        size = record.image.height, record.image.width
        references = tuple(reference_view(source, limits) for source in record.sources)
        seed = example.seed % SEEDS
        found.append(Asked(ImageRequest(example.caption, size, seed, references), Truth(example.caption, record), seed))
    return found


class Rewarder:
    """Makes pictures with a checkpoint's networks, those in training among them, and has them judged.

    Args:
        live: the networks in training, and frozen ones that are loaded already.
    """

    def __init__(
        self, config: TrainConfig, checkpoint: Checkpoint, device: torch.device, live: Mapping[str, Any]
    ) -> None:
        assert config.rewarded is not None
        self.config: RewardsConfig = config.rewarded
        self.networks = LiveNetworks(checkpoint, device, live, choose_dtype(None, device))
        self.engine = Engine(self.networks)
        without, having = (
            settings_from(dict(self.config.options), checkpoint.sampling, references)[2]  # type: ignore[arg-type]
            for references in (False, True)
        )
        self.settings: Settings = without
        self.settings_with_references: Settings = having
        drawn = next((source for source in config.data if source.scenes is not None), None)
        scenes = (None, None) if drawn is None else (drawn.assets, drawn.scenes)
        instruments = Instruments(*scenes, start=config.start)
        self.pool = RewardPool(self.config.rewards, instruments, self.config.workers, self.config.timeout)
        self.learnt = tuple(name for name, reward in self.config.rewards.items() if reward.weight)
        self.device = device
        self._features: PictureFeatures | None = None
        self._shown: list[tuple[Tensor, Tensor]] = []
        self.before: dict[str, float] = {}

    def sees_pictures(self, names: Sequence[str]) -> bool:
        """Whether any of these rewards is one of pictures."""
        return any(not self.config.rewards[name].of_codes for name in names)

    def make(self, requests: Sequence[ImageRequest], settings: Settings | None = None) -> list[EngineImage]:
        """Pictures of one prompt as users get them."""
        usual = self.settings_with_references if requests and requests[0].references else self.settings
        with torch.autocast(self.device.type, enabled=False):
            return self.engine.run(requests, settings or usual)

    def ask(
        self,
        names: Sequence[str],
        codes: Sequence[Tensor],
        pictures: Sequence[Any],
        truth: Truth,
        places: Sequence[int] | None = None,
    ) -> Judged:
        """Have pictures of one prompt judged, for :meth:`collect`.

        Args:
            codes, pictures: different ones.
            places: of each picture of the group, which of them it is; by default it is those.
        """
        rewards = self.config.rewards
        tasks = [self.pool.ask(name, codes if rewards[name].of_codes else pictures, truth) for name in names]
        return Judged(tasks, list(range(len(codes)) if places is None else places))

    def collect(self, names: Sequence[str], groups: Sequence[Judged]) -> tuple[Tensor, dict[str, Tensor]]:
        """The rewards of groups of equally many pictures.

        Returns:
            (N,) weighted sums; the mean of each reward over the pictures that it says something about, and for how many
            seconds they were waited for.
        """
        since = time.perf_counter()
        scores = self.pool.collect()
        waited = torch.tensor(time.perf_counter() - since)
        total = torch.zeros(len(groups), len(groups[0].places), dtype=torch.float64)
        figures: dict[str, Tensor] = {}
        for number, name in enumerate(names):
            given: list[float] = []
            for row, group in enumerate(groups):
                values = [scores[group.tasks[number]][place] for place in group.places]
                given += [value for value in values if value is not None]
                total[row] += self.config.rewards[name].weight * torch.tensor(
                    [0.0 if value is None else value for value in values], dtype=torch.float64
                )
            if given:
                figures[name] = torch.tensor(given, dtype=torch.float64).mean()
        return total.flatten(), {"reward": total.mean(), **figures, "reward_seconds": waited}

    # Evaluation

    def judged(self, prompts: Sequence[Asked], codes: Sequence[Tensor] | None = None) -> Losses:
        """All rewards of fresh pictures of held-out prompts, ``loss`` being the negative of the rewarded ones' sum.

        Pictures are made and judged in the networks' and judges' own precision, whatever training computes in.
        """
        with torch.autocast(self.device.type, enabled=False):
            return self._judged(prompts, codes)

    def _judged(self, prompts: Sequence[Asked], codes: Sequence[Tensor] | None) -> Losses:
        count, names = self.config.evaluation_pictures, tuple(self.config.rewards)
        groups, made, true = [], [], []
        for place, one in enumerate(prompts):
            requests = [
                _with(one.request, one.picture_seed(number), None if codes is None else codes[place])
                for number in range(count)
            ]
            images = self.make(requests)
            pictures = [image.image for image in images]
            groups.append(self.ask(names, [image.codes for image in images], pictures, one.truth))
            made += pictures
            if one.truth.record.task != PROMPT_ONLY:
                true.append(one.truth.record.image)
        features = self._features_of(made), self._features_of(true)
        self._shown.append(features)
        rewards, figures = self.collect(names, groups)
        alike = features[0].view(len(prompts), count, -1)
        if count > 1:
            cosines = (alike @ alike.transpose(1, 2)).sum(dim=(1, 2)) - count
            figures["diversity"] = 1 - cosines.mean() / (count * (count - 1))
        figures.pop("reward_seconds")
        return {"loss": -rewards.mean(), **figures}

    def _features_of(self, pictures: Sequence[Image.Image]) -> Tensor:
        if self._features is None:
            self._features = PictureFeatures()
        return self._features(pictures)

    def distance(self) -> dict[str, float]:
        """KID of all pictures since the last call from the true ones."""
        shown, self._shown = self._shown, []
        made, true = (torch.cat(part) for part in zip(*shown)) if shown else (torch.zeros(0), torch.zeros(0))
        return {"kid": kernel_distance(made, true)} if min(len(made), len(true)) > 1 else {}

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        """Compare an evaluation with the first one.

        Raises:
            TrainingStopped: a figure is so much worse that the stage says to stop.
        """
        for name in self.config.stop:
            if name not in figures:
                raise DataError(
                    f"reinforcement.stop: evaluations have no {name}; with more evaluation_batches or "
                    "evaluation_pictures they may, or take it out"
                )
        self.before = self.before or {name: figures[name] for name in self.config.stop}
        for name, most in self.config.stop.items():
            then, now = self.before.get(name, figures[name]), figures[name]
            better_low = name == "kid" or (name in self.config.rewards and self.config.rewards[name].weight < 0)
            if (now - then if better_low else then - now) > most:
                raise TrainingStopped(
                    f"step {step}: {name} went from {then:.4g} to {now:.4g}, which is worse by more than "
                    f"reinforcement.stop.{name}={most:g}. The states before it stay; --finish writes the newest as a "
                    "checkpoint, a higher weight of kl keeps nearer to the start"
                )


class RewardedObjective(Objective):
    """What both halves have in common: rollouts that several updates learn from, and evaluations that are watched.

    A rollout follows from the weights, the seed and its number, and states lie between rollouts; so a run that is
    stopped goes on as if it had not been.
    """

    rewarder: Rewarder
    _number = -1
    _rollouts: dict[int, Any]

    def kept(self, place: RolloutPlace, make: Callable[[], Made]) -> Made:
        """The rollout of a batch, made by the whole weights when its first micro-batch comes."""
        if place.rollout != self._number:
            self._number, self._rollouts = place.rollout, {}
        if place.batch not in self._rollouts:
            with whole_weights(self), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                self._rollouts[place.batch] = make()
        return self._rollouts[place.batch]

    def report(self, batches: Any, count: int) -> dict[str, float]:
        return self.rewarder.distance()

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        self.rewarder.watch(step, figures)

    def close(self) -> None:
        self.rewarder.pool.close()

    def metadata(self) -> dict[str, Any]:
        return {"before": self.rewarder.before}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        self.rewarder.before = dict(metadata.get("before", {}))


def _with(request: ImageRequest, seed: int, codes: Tensor | None) -> ImageRequest:
    return ImageRequest(request.prompt, request.size, seed, request.references, codes=codes)


@contextmanager
def whole_weights(objective: nn.Module) -> Iterator[None]:
    """Weights that are spread over processes (FSDP2) in full, so that networks can be run in any way."""
    sharded: list[Any] = [module for module in objective.modules() if hasattr(module, "unshard")]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            if module is not objective:  # the root's own weights serve the rest of its pass
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()
