"""What an evaluation measures: one YAML file, validated once."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arimage.data.scenes.settings import SceneSettings
from arimage.errors import nearest
from arimage.evaluation.phrasings import KINDS
from arimage.yaml_files import merged

MASKED = ("replace", "add")
SECOND = ("replace", "remove", "add", "add text", "change text")


class GroupConfig(BaseModel):
    """Cases that are made alike and measured together.

    Attributes:
        scenes: what they are drawn from; the stage's ``scenes`` are under it.
        cases: scenes; each is asked for once in every language.
        own_words: the kind of :mod:`arimage.evaluation.phrasings` that prompts are taken from, instead of the captions.
        masked: edits go with a mask of what they may change; the rest must stay bit for bit.
        second: edits are made on the result of another, which changed the background; both must hold at the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenes: SceneSettings
    cases: int | None = Field(None, ge=1)
    own_words: str | None = None
    masked: bool = False
    second: bool = False

    @model_validator(mode="after")
    def _possible(self) -> "GroupConfig":
        tasks = {task for task, share in self.scenes.tasks.items() if share}
        if (self.own_words is not None) + self.masked + self.second > 1:
            raise ValueError("own_words, masked and second: a group has one of them")
        if self.own_words is not None:
            if self.own_words not in KINDS:
                raise ValueError(f"own_words: there is no kind {self.own_words!r}{nearest(self.own_words, KINDS)}")
            if tasks != {KINDS[self.own_words].task}:
                raise ValueError(f"own_words: {self.own_words} goes with the task {KINDS[self.own_words].task} alone")
        for name, chosen, known in (("masked", self.masked, MASKED), ("second", self.second, SECOND)):
            if chosen and not tasks <= set(known):
                raise ValueError(f"{name} goes with the tasks {', '.join(known)} only")
        return self


class EvaluateConfig(BaseModel):
    """An evaluation.

    Attributes:
        model: checkpoint folder; the embedded model when None.
        assets: folder of ``arimage data sprites``.
        scenes: what all groups have in common.
        groups: by name; what is measured follows from the task of each record.
        cases: scenes of a group that does not say how many.
        languages: each scene is asked for in each of them.
        batch: pictures that are made at once.
        options: of :func:`arimage.generate` (steps, guidance, temperature, ...); the shipped ones when empty.
        part: what makes the pictures: the whole ``model``; the ``decoder`` from the true scene's visual tokens; the
            ``autoencoder`` from the true scene, there and back. What a part loses, the whole cannot have. The
            ``tokenizer`` makes none: its rows say how often a thing keeps its codes and a character can be read from
            its code, over twice ``cases`` scenes of ``scenes``, whatever the groups are. The ``autoregressive`` model
            makes visual tokens: its rows are shares of the codes that it generates, not of pictures.
        seed: of the first picture of a group.
        training: scenes that count as training pictures in the memorisation figure.
        shown: pictures on the contact sheet, evenly spaced by index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    assets: str
    scenes: dict[str, Any] = Field(default_factory=dict)
    groups: dict[str, GroupConfig] = Field(min_length=1)
    cases: int = Field(50, ge=1)
    languages: tuple[Literal["en", "zh"], ...] = ("en", "zh")
    batch: int = Field(8, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    part: Literal["model", "decoder", "autoencoder", "tokenizer", "autoregressive"] = "model"
    seed: int = Field(1000, ge=0)
    training: int = Field(1000, ge=0)
    shown: int = Field(48, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, values: Any) -> Any:
        """Give every group the common scene settings, under its own; its tasks are its own alone."""
        if not isinstance(values, dict) or not isinstance(values.get("groups"), dict):
            return values
        groups = {}
        for name, group in values["groups"].items():
            if isinstance(group, dict) and isinstance(group.get("scenes"), dict):
                scenes = merged({"split": "evaluation", **(values.get("scenes") or {})}, group["scenes"])
                if "tasks" in group["scenes"]:
                    scenes["tasks"] = group["scenes"]["tasks"]
                group = {**group, "scenes": scenes}
            groups[name] = group
        return {**values, "groups": groups}
