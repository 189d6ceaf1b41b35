"""Whether a run may resume from a saved state: compares the settings it was made with.

Settings that decide the weights must be equal, so that a resumed run is the run that was never stopped. Those in
``IGNORED_ON_RESUME`` (paths, logging, memory, time) may change.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

from pydantic import ValidationError

from arimage.training.config import Subject, TrainConfig

IGNORED_ON_RESUME = frozenset({
    "workers", "log_every", "save_every", "keep", "evaluate_every", "evaluation", "evaluation_batches", "sample_every",
    "samples", "trackers", "output", "compile", "gradient_checkpointing", "on_spike", "spike_factor", "max_bad_share",
    "restart", "assets", "scenes",
})  # fmt: skip
FREE_OF_REWARDS = ("workers", "timeout", "stop", "evaluation_pictures")
FREE_OF_SOURCES = ("index", "shard_cache", "shard_cache_gb")
MEASURED_AT_THE_END = ("statistics_samples", "latent_scale")
LISTED = 8
LONGEST = 60


def settings_of(config: TrainConfig, start_weights: str, processes: int) -> dict[str, Any]:
    """What is kept in a state: the whole stage, the hash of the weights that it starts from, the processes."""
    return {"stage": config.model_dump(mode="json"), "start_weights": start_weights, "processes": processes}


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of such settings those that decide the weights. The batch is that of all processes."""
    kept = {name: value for name, value in _completed(settings["stage"]).items() if name not in IGNORED_ON_RESUME}
    for subject in get_args(Subject):
        if subject != kept["train"]:
            kept.pop(subject, None)
    if kept["schedule"] == "constant":
        del kept["steps"], kept["min_lr_ratio"]
    if "autoencoder" in kept:
        kept["autoencoder"] = {k: v for k, v in kept["autoencoder"].items() if k not in MEASURED_AT_THE_END}
    if kept.get("reinforcement"):
        rewards = kept["reinforcement"]
        kept["reinforcement"] = {k: v for k, v in rewards.items() if k not in FREE_OF_REWARDS} | {
            "rewards": {
                name: {k: v for k, v in reward.items() if k != "url"}
                for name, reward in rewards["rewards"].items()
                if reward["weight"]
            }
        }
    kept["data"] = [{k: v for k, v in one.items() if k not in FREE_OF_SOURCES} for one in kept["data"]]
    kept["batch_size"] *= settings["processes"]
    kept["start"] = settings["start_weights"][:12]
    return kept


def differences(made_with: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The decisive settings that differ, each as ``name old → new``."""
    old, new = (dict(_flat(decisive(settings))) for settings in (made_with, now))
    names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
    if "schedule" in names:  # these two count under some schedules only
        names = [name for name in names if name not in ("steps", "min_lr_ratio")]
    told = [f"{name} {_short(old.get(name, 'absent'))} → {_short(new.get(name, 'absent'))}" for name in names]
    return told if len(told) <= LISTED else [*told[:LISTED], f"and {len(told) - LISTED} more"]


def evaluated_alike(made_with: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether figures of evaluations may be compared."""
    names = ("evaluation", "evaluation_batches", "captions", "batch_size", "reinforcement")
    return all(made_with["stage"].get(name) == now["stage"].get(name) for name in names)


def _completed(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of another release: settings that it does not know have their defaults, those that are gone and were off
    (empty, 0, false) are left out."""
    known: dict[str, Any] = json.loads(json.dumps(stage))
    gone: list[tuple[tuple[int | str, ...], Any]] = []
    try:
        TrainConfig.model_validate(known)
    except ValidationError as error:
        for place in (found["loc"] for found in error.errors() if found["type"] == "extra_forbidden"):
            gone.append((place, _section(known, place).pop(place[-1])))
    with suppress(ValidationError):  # a value that is no longer allowed is compared as it stands
        known = TrainConfig.model_validate(known).model_dump(mode="json")
    for place, value in gone:
        if value:
            _section(known, place)[place[-1]] = value
    return known


def _section(stage: Any, place: Sequence[int | str]) -> Any:
    for part in place[:-1]:
        stage = stage[part]
    return stage


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their dotted names, as text; lists and empty sections are one setting."""
    if isinstance(value, Mapping) and value:
        parts: Any = value.items()
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        parts = enumerate(value)
    else:
        yield place, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return
    for name, part in parts:
        yield from _flat(part, f"{place}.{name}" if place else str(name))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
