"""The settings of the engine, and how they follow from the options of a call (:mod:`arimage.options`)."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from arimage.autoregressive.sampling import TokenSampling
from arimage.errors import UsageError, nearest
from arimage.images.masks import FEATHER, MOST_FEATHER
from arimage.inference.requests import Preview, Progress
from arimage.inference.results import GeneratedImage
from arimage.inference.rewriting import Rewriter
from arimage.options import OPTIONS, Phase, SamplingOptions, Tier, resolve
from decoder.diffusion_decoder import DecoderSettings

# Where the options of each half go: a field of Settings, and its type; what has no field there is one of Settings.
PHASES: dict[Phase, tuple[str, type]] = {"diffusion": ("decoder", DecoderSettings), "tokens": ("tokens", TokenSampling)}


@dataclass(frozen=True)
class Settings:
    """How pictures are made.

    Attributes:
        decoder: how latents are sampled.
        tokens: how visual tokens are drawn.
        negative_text: glyph text to keep away from.
        preview_grid: generate the preview grid before the target, as the format has it; pictures with references
            have none either way. Without it a model works as well as it was trained to
            (``AutoregressiveTraining.preview``).
        draft_side: pictures of more pixels than a square of this side are made at about that many first, and enlarged:
            for a model whose tokens were trained at one size. 0 draws the tokens of every size.
        draft_strength: share of the diffusion that an enlarged draft goes through, in (0, 1].
        align_references: what references hold is shown to diffusion where the visual tokens repeat it
            (:mod:`arimage.inference.alignment`).
        feather: pixels over which an edit fades in inside the border of its mask.
    """

    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    tokens: TokenSampling = field(default_factory=TokenSampling)
    negative_text: str = ""
    preview_grid: bool = True
    draft_side: int = 0
    draft_strength: float = 0.5
    align_references: bool = False
    feather: int = FEATHER

    def __post_init__(self) -> None:
        if not 0 <= self.feather <= MOST_FEATHER:
            raise ValueError(f"feather must lie in 0..{MOST_FEATHER}, got {self.feather}")
        if self.draft_side < 0:
            raise ValueError(f"draft_side must be at least 0, got {self.draft_side}")
        if not 0 < self.draft_strength <= 1:
            raise ValueError(f"draft_strength must lie in (0, 1], got {self.draft_strength}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Settings":
        """From settings by the names of their options."""
        parts: dict[str, dict[str, Any]] = {part: {} for part, _ in PHASES.values()}
        own: dict[str, Any] = {}
        for name, value in values.items():
            option = OPTIONS[name]
            assert option.half is not None
            part, kind = PHASES[option.half]
            target = option.setting or name
            (parts[part] if target in {one.name for one in fields(kind)} else own)[target] = value
        return cls(**{part: kind(**parts[part]) for part, kind in PHASES.values()}, **own)


class Options(SamplingOptions, total=False):
    """How pictures are made, and what is called meanwhile; every option may be left out.

    Attributes:
        on_progress: called as tokens come, one or some at a time, and after every diffusion step.
        on_preview: called with cheap looks at the picture under way.
        on_image: called with each picture as soon as it is finished, so that what is made is not lost with the call.
        cancel: when this event is set, the call ends with :class:`arimage.Cancelled`.
        rewrite: a chat endpoint with OpenAI's interface that rewrites the prompts, as its address or as an
            :class:`arimage.Rewriter`; recipes hold the prompts that were used.
    """

    on_progress: Callable[[Progress], None] | None
    on_preview: Callable[[Preview], None] | None
    on_image: Callable[[GeneratedImage], None] | None
    cancel: threading.Event | None
    rewrite: Rewriter | str | None


def settings_from(
    options: Options, of_checkpoint: Mapping[str, Any], references: bool = False
) -> tuple[Tier, dict[str, Any], Settings]:
    """The tier and the settings that options ask for, by name and as the engine takes them.

    Args:
        of_checkpoint: the model's own way of drawing tokens, where options say nothing.
        references: whether the pictures have some; the model's own way may be another then.

    Raises:
        UsageError: there is no such option, or a value is wrong.
    """
    known = dict.fromkeys([*OPTIONS, *Options.__annotations__])
    for name in options:
        if name not in known:
            raise UsageError(f"there is no option {name!r}{nearest(name, known)}")
    tier, values = resolve(options, of_checkpoint, references)
    return tier, values, Settings.of(values)
