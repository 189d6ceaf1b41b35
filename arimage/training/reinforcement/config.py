"""The sections of a stage (:mod:`arimage.training.config`) that learns from rewards or from pairs of pictures."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arimage.errors import nearest

# What the judge of evaluations (arimage.evaluation.judge) says about a picture.
ABILITIES = (
    "background colour", "subject", "placement, one", "placement, two", "English text", "English text, NED",
    "Chinese text", "false text", "edit: background", "edit: replace subject", "edit: add subject",
    "edit: remove subject", "edit: move subject", "edit: text (en)", "edit: text (zh)", "edit: style", "identity",
)  # fmt: skip
FIGURES = ("kid", "diversity")
NEEDS = {"judge": "ability", "python": "function", "http": "url"}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RewardConfig(_Strict):
    """One reward; see :mod:`arimage.training.reinforcement.rewards`.

    Attributes:
        kind: ``ocr``: the quoted texts of the prompt, read; ``judge``: one ability as evaluations judge it, of scenes;
            ``similarity``: to the true picture; ``codes``: the share of the true picture's visual tokens that come,
            which needs no decoder; ``python``: a function of yours; ``http``: a service of yours.
        weight: in the sum of all rewards. With 0 it is measured in evaluations only: a row that is not rewarded.
        ability: that is judged, such as ``background colour``, ``placement, one`` or ``subject``.
        function: ``package.module:function`` or ``file.py:function``.
        url: of the service.
        sees: what a function is given: pictures, or their visual tokens, which need no decoder.
    """

    kind: Literal["ocr", "judge", "similarity", "codes", "python", "http"]
    weight: float = 1.0
    ability: str | None = None
    function: str | None = None
    url: str | None = None
    sees: Literal["pictures", "codes"] = "pictures"

    @property
    def of_codes(self) -> bool:
        """Whether it is one of visual tokens, and not of pictures."""
        return self.kind == "codes" or self.sees == "codes"

    @model_validator(mode="after")
    def _whole(self) -> "RewardConfig":
        for kind, name in NEEDS.items():
            if (self.kind == kind) != (getattr(self, name) is not None):
                raise ValueError(f"{name} goes with kind: {kind}, which needs it")
        if self.ability is not None and self.ability not in ABILITIES:
            raise ValueError(f"ability: the judge knows no {self.ability!r}{nearest(self.ability, ABILITIES)}")
        if self.function is not None and not all(self.function.rpartition(":")[::2]):
            raise ValueError(f"function: write package.module:function or file.py:function, not {self.function!r}")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: must begin with http:// or https://, not {self.url!r}")
        if self.sees == "codes" and self.kind != "python":
            raise ValueError("sees: codes goes with kind: python")
        return self


class RewardsConfig(_Strict):
    """Rollouts and their rewards, of either half.

    Attributes:
        group: pictures of a prompt, which are compared with each other.
        updates: optimiser steps that learn from a rollout; ``steps`` and ``save_every`` are multiples of it.
        parts: a micro-batch learns from one of so many parts of its groups' pictures, where they do not fit into memory
            together; ``accumulation`` is a multiple of it.
        scale_rewards: advantages are divided by the deviation of their group's rewards. Without, groups count by how
            much their pictures differ: where rewards are shares of small differences, that is less noise.
        rewards: by name; their weighted sum is what is learnt from.
        workers: processes that compute rewards, beside every training process; 0 computes them within it.
        timeout: seconds that a reward may take for a group before the run stops; with workers only.
        options: of :func:`arimage.generate`, for the pictures of a rollout (those of the diffusion) and of evaluations
            (all).
        evaluation_pictures: of each held-out prompt.
        stop: the run stops when a figure of an evaluation is so much worse than before the first step: ``kid`` (or a
            reward of negative weight) above it, ``diversity`` or a reward's name below it.
    """

    group: int = Field(8, ge=2)
    updates: int = Field(2, ge=1)
    parts: int = Field(1, ge=1)
    scale_rewards: bool = True
    rewards: dict[str, RewardConfig] = Field(min_length=1)
    workers: int = Field(1, ge=0)
    timeout: float = Field(300.0, gt=0)
    options: dict[str, Any] = Field(default_factory=lambda: {"tier": "fast"})
    evaluation_pictures: int = Field(2, ge=1)
    stop: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sensible(self) -> "RewardsConfig":
        if not any(reward.weight for reward in self.rewards.values()):
            raise ValueError("rewards: at least one must have a weight other than 0")
        for name in (
            *FIGURES,
            "reward",
            "loss",
            "groups",
            "ratio",
            "clipped",
            "kl",
            "reward_seconds",
            "rollout_seconds",
        ):
            if name in self.rewards:
                raise ValueError(f"rewards: {name!r} is the name of another figure; choose another")
        for name, most in self.stop.items():
            if name not in (*FIGURES, *self.rewards):
                raise ValueError(f"stop: there is no figure {name!r}{nearest(name, (*FIGURES, *self.rewards))}")
            if most <= 0:
                raise ValueError(f"stop.{name}: must be above 0, how much worse it may get")
        if "diversity" in self.stop and self.evaluation_pictures < 2:
            raise ValueError("stop.diversity: pictures of a prompt are compared; set evaluation_pictures to 2 or more")
        return self


class TokenPolicy(_Strict):
    """GRPO of the autoregressive model: groups of pictures that differ in their visual tokens.

    Attributes:
        clip: how far the ratio of a token's probabilities counts beyond 1.
        kl: weight of the divergence from the starting model.
    """

    clip: float = Field(0.2, gt=0)
    kl: float = Field(0.01, ge=0)


class FlowPolicy(_Strict):
    """Flow-GRPO of the decoder: groups of pictures that have their visual tokens in common.

    Attributes:
        clip: how far the ratio counts beyond 1; log-probabilities are means over latents, so it stays very near 1.
        kl: weight of the divergence from the starting model.
        noise_level: of the SDE.
        window: steps that are taken with noise; all others are Euler's.
        window_until: the share of the steps within which the window lies, at a place drawn for each group.
        codes: visual tokens of the true picture, or those that the autoregressive model generates for the prompt.
        shared_noise: pictures of a group begin from the same noise, so that the window alone tells them apart.
    """

    clip: float = Field(1e-4, gt=0)
    kl: float = Field(0.01, ge=0)
    noise_level: float = Field(0.7, gt=0)
    window: int = Field(2, ge=1)
    window_until: float = Field(0.5, gt=0, le=1)
    codes: Literal["picture", "generated"] = "picture"
    shared_noise: bool = False


class Preferences(_Strict):
    """DPO on pairs: each record has a ``rejected`` picture beside its own.

    Attributes:
        beta: how closely the model stays with the starting one. Of tokens, whose log-probabilities are summed, about
            0.1; of the decoder, whose squared errors are means over latents, thousands
            (Wallace et al. 2023, arXiv:2311.12908).
    """

    beta: float = Field(gt=0)
