"""How pictures are made: the options of a call, the named quality tiers, and the settings that follow from both."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

from arimage.autoregressive.sampling import TokenSampling
from arimage.checkpoints.checkpoint import SAMPLING
from arimage.errors import UsageError, nearest
from arimage.inference.requests import Preview, Progress
from arimage.inference.results import GeneratedImage
from decoder.diffusion_decoder import DecoderSettings
from decoder.sampler import Solver


@dataclass(frozen=True)
class Settings:
    """How pictures are made.

    Attributes:
        steps: diffusion steps, at least 1.
        guidance: classifier-free guidance of the decoder, at least 1 (1 is none).
        guidance_interval: the noise levels (0..1) between which the decoder is guided.
        solver: ``euler`` or ``multistep``, see :func:`decoder.sampler.sample_flow`.
        schedule_power: above 0; below 1 steps are closer together at high noise.
        dynamic_thresholding: percentile in (0, 1] to which clean estimates are clipped, or None.
        strength: in (0, 1]; below 1 the diffusion starts from the noised canvas.
        negative_text: glyph text to keep away from.
        tokens: how visual tokens are drawn.
        preview_grid: generate the preview grid before the target, as the format has it; pictures with references
            have none either way. Without it a model works as well as it was trained to
            (``AutoregressiveTraining.preview``).
    """

    steps: int = 50
    guidance: float = 1.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    solver: Solver = "euler"
    schedule_power: float = 1.0
    dynamic_thresholding: float | None = None
    strength: float = 1.0
    negative_text: str = ""
    tokens: TokenSampling = field(default_factory=TokenSampling)
    preview_grid: bool = True

    def __post_init__(self) -> None:
        self.decoder()

    def decoder(self) -> DecoderSettings:
        """The decoder's part of the settings.

        Raises:
            ValueError: a value is out of its range.
        """
        return DecoderSettings(
            steps=self.steps,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            solver=self.solver,
            schedule_power=self.schedule_power,
            dynamic_thresholding=self.dynamic_thresholding,
            strength=self.strength,
        )


Tier = Literal["lossless", "fast"]
TIERS: dict[str, dict[str, Any]] = {
    "lossless": {
        "steps": 50,
        "guidance": 1.5,
        "guidance_interval": (0.0, 1.0),
        "solver": "euler",
        "schedule_power": 1.0,
    },
    "fast": {
        "steps": 5,
        "guidance": 1.5,
        "guidance_interval": (0.6, 1.0),
        "solver": "multistep",
        "schedule_power": 0.7,
    },
}


class Options(TypedDict, total=False):
    """How pictures are made; every option may be left out.

    Attributes:
        tier: ``lossless`` (the default: 50 Euler steps with guidance, as the reference) or ``fast`` (5 steps of the
            multistep solver, the first of them with guidance: nearly the same picture). The options below override
            either.
        steps: diffusion steps, 1 to 1000.
        guidance: of the decoder, at least 1 (1 is none).
        guidance_interval: (low, high) noise levels in 0 to 1 between which the decoder is guided.
        solver: ``euler``, or ``multistep``, which needs fewer steps.
        schedule_power: above 0; below 1 steps are closer together at high noise, which helps where they are few.
        dynamic_thresholding: percentile in (0, 1] to which clean estimates are clipped.
        negative_text: text to keep from appearing.
        temperature, top_p, top_k, min_p, token_guidance: how visual tokens are drawn, see
            :class:`arimage.TokenSampling`; a checkpoint may bring defaults of its own.
        preview_grid: generate the format's preview grid before the picture's own tokens, or leave it out, which needs
            a model that was trained for it; a checkpoint may bring its own default. Not for pictures with references.
        on_progress: called as tokens come, one or some at a time, and after every diffusion step.
        on_preview: called with cheap looks at the picture under way.
        on_image: called with each picture as soon as it is finished, so that what is made is not lost with the call.
        cancel: when this event is set, the call ends with :class:`arimage.Cancelled`.
    """

    tier: Tier
    steps: int
    guidance: float
    guidance_interval: tuple[float, float]
    solver: Solver
    schedule_power: float
    dynamic_thresholding: float | None
    negative_text: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    token_guidance: float
    preview_grid: bool
    on_progress: Callable[[Progress], None] | None
    on_preview: Callable[[Preview], None] | None
    on_image: "Callable[[GeneratedImage], None] | None"
    cancel: threading.Event | None


def settings_from(options: Options, strength: float, sampling: Mapping[str, float]) -> tuple[Tier, Settings]:
    """The settings that options ask for; the model's own way of drawing tokens where they say nothing."""
    for name in options:
        if name not in Options.__annotations__:
            hint = nearest(name, Options.__annotations__)
            raise UsageError(f"there is no option {name!r}{hint}")
    tier = options.get("tier", "lossless")
    if tier not in TIERS:
        raise UsageError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    diffusion = TIERS[tier] | {name: value for name, value in options.items() if name in TIERS[tier]}
    chosen = {**sampling, **{name: value for name, value in options.items() if name in SAMPLING}}
    for name, reason in idle_options(chosen.get("temperature"), diffusion["guidance"]).items():
        if options.get(name):
            raise UsageError(f"{reason}: {name} would have no effect; leave one of them out")
    chosen["guidance"] = chosen.pop("token_guidance", TokenSampling().guidance)
    preview_grid = chosen.pop("preview_grid", True)
    try:
        tokens = TokenSampling(**chosen)  # type: ignore[arg-type]
        return tier, Settings(
            **diffusion,
            dynamic_thresholding=options.get("dynamic_thresholding"),
            strength=strength,
            negative_text=options.get("negative_text", ""),
            tokens=tokens,
            preview_grid=bool(preview_grid),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def idle_options(temperature: object, guidance: object) -> dict[str, str]:
    """Options that are without effect beside these values, each with the reason."""
    greedy = dict.fromkeys(("top_p", "top_k", "min_p"), "temperature=0 takes the most likely token")
    unguided = dict.fromkeys(("guidance_interval", "negative_text"), "guidance=1 is no guidance")
    return (greedy if temperature == 0 else {}) | (unguided if guidance == 1 else {})


def option_values(settings: Settings) -> dict[str, Any]:
    """Settings by the names of the options."""
    values = asdict(settings)
    tokens = values.pop("tokens")
    tokens["token_guidance"] = tokens.pop("guidance")
    return {**values, **tokens, "guidance_interval": list(settings.guidance_interval)}
