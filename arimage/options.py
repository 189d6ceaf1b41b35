"""How a picture is sampled: each option declared once, by an entry of :class:`SamplingOptions`.

An entry holds name, type, range, default, values by tier and documentation. From it follow the keyword arguments of
:func:`arimage.generate` and :func:`arimage.edit`, the options of the two commands and their help, the settings in a
recipe and their way back (:mod:`arimage.inference.reproduce`), what a checkpoint may bring a default for, and the pages
``docs/options.md`` and ``docs/python.md``. Nothing heavy is imported here: the command line's help needs it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

from arimage.errors import UsageError
from decoder.solvers import Solver

Tier = Literal["reference", "fast"]
Task = Literal["generate", "edit", "upscale"]
Phase = Literal["diffusion", "tokens"]
TASKS: tuple[Task, ...] = get_args(Task)
INTERVAL = tuple[float, float]


@dataclass(frozen=True)
class Range:
    """An interval of numbers as mathematics writes it: ``[0, 1)``, ``(0, inf)``."""

    text: str

    @property
    def bounds(self) -> tuple[float, float]:
        low, _, high = self.text[1:-1].partition(",")
        return float(low), float(high)

    def __contains__(self, value: float) -> bool:
        low, high = self.bounds
        return (low <= value if self.text[0] == "[" else low < value) and (
            value <= high if self.text[-1] == "]" else value < high
        )

    def __str__(self) -> str:
        """In words: ``in [0, 1)``, ``above 0``."""
        low, high = self.bounds
        if high < math.inf:
            return f"in {self.text}"
        return f"{'at least' if self.text[0] == '[' else 'above'} {low:g}"


@dataclass(frozen=True)
class NoEffect:
    """What leaves an option without effect: another option's value, and why."""

    option: str
    value: float
    reason: str


WITH_REFERENCES = "with_references"
GREEDY = NoEffect("temperature", 0, "temperature=0 takes the most likely token")
UNGUIDED = NoEffect("guidance", 1, "guidance=1 is no guidance")
DRAFTLESS = NoEffect("draft_side", 0, "draft_side=0 makes no draft")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        meaning: what it does, without its range and default; a sentence without its full stop.
        default: at tier ``reference``. Recipes of a version that did not have the option are read as if they held it,
            so a new option's default must leave pictures as they were.
        half: the half of the model that it belongs to; None for the tier, which stands beside the settings.
        range: of a number, or of both ends of an interval.
        tiers: its values at other tiers, where they differ.
        setting: its name in the settings of its half, where it has another there.
        idle: what leaves it without effect.
        tasks: the calls and commands that take it.
        of_models: a checkpoint may bring a default of its own, as it may for all options of the tokens.
        not_with_references: why it cannot be given where there are references.
        name, type, choices, optional: read from the entry's name and type.
    """

    meaning: str
    default: Any
    half: Phase | None
    range: Range | None = None
    tiers: Mapping[Tier, Any] = field(default_factory=dict)
    setting: str = ""
    idle: NoEffect | None = None
    tasks: tuple[Task, ...] = TASKS
    of_models: bool = False
    not_with_references: str = ""
    name: str = ""
    type: Any = None
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def documentation(self) -> str:
        """Meaning and range."""
        return f"{self.meaning}{'' if self.range is None else f'; {self.range}'}."

    @property
    def hint(self) -> str:
        """The type as the code writes it."""
        if self.choices:
            return f"Literal{list(self.choices)}"
        name = "tuple[float, float]" if self.type == INTERVAL else str(self.type.__name__)
        return f"{name} | None" if self.optional else name

    @property
    def defaults(self) -> str:
        """The default and where it comes from, for documents; empty where there is none."""
        if self.default is None or self.default == "":
            return ""
        others = "".join(f", {_shown(value)} at {tier}" for tier, value in self.tiers.items())
        return _shown(self.default) + others + (", or the model's own" if self.for_models else "")

    @property
    def for_models(self) -> bool:
        """Whether a checkpoint may bring a default of its own."""
        return self.of_models or self.half == "tokens"

    def at(self, tier: Tier) -> Any:
        """The value at a tier."""
        return self.tiers.get(tier, self.default)

    def checked(self, value: Any) -> Any:
        """A value as the option's type.

        Raises:
            UsageError: it is of another type, or out of its range.
        """
        if value is None and self.optional:
            return None
        if self.choices:
            if value not in self.choices:
                raise UsageError(f"{self.name} must be one of {', '.join(self.choices)}, got {value!r}")
            return value
        if self.type == INTERVAL:
            return self._interval(value)
        kinds = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
        right = {
            bool: lambda: value in (True, False),
            int: lambda: _is_number(value) and value == math.floor(value),
            float: lambda: _is_number(value),
            str: lambda: isinstance(value, str),
        }
        if not right[self.type]():
            raise UsageError(f"{self.name} must be {kinds[self.type]}, got {value!r}")
        if self.range is not None and value not in self.range:
            raise UsageError(f"{self.name} must {self._rule}, got {value!r}")
        return self.type(value)

    def parsed(self, text: str) -> Any:
        """A value that is written as text: ``0.5``, ``true``.

        Raises:
            UsageError: it is none, or out of its range.
        """
        try:
            value: Any = {"true": True, "false": False}[text] if self.type is bool else self.type(text)
        except (KeyError, ValueError):
            value = text
        return self.checked(value)

    @property
    def _rule(self) -> str:
        words = str(self.range)
        return f"lie {words}" if words.startswith("in ") else f"be {words}"

    def _interval(self, value: Any) -> tuple[float, float]:
        ends: tuple[Any, ...] = tuple(value) if isinstance(value, Iterable) else ()
        assert self.range is not None
        if len(ends) != 2 or not all(_is_number(end) and end in self.range for end in ends) or ends[0] > ends[1]:
            raise UsageError(f"{self.name} must be (low, high), low <= high, both {self.range}; got {value!r}")
        return float(ends[0]), float(ends[1])


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class SamplingOptions(TypedDict, total=False):
    """How pictures are sampled; every option may be left out."""

    tier: Annotated[
        Tier,
        Option(
            "reference (50 Euler steps with guidance, as upstream) or fast (5 steps of ab2, guided while noise is "
            "high: nearly the same picture); the options of diffusion override either",
            default="reference",
            half=None,
        ),
    ]
    steps: Annotated[
        int,
        Option("Diffusion steps, up to 1000", default=50, half="diffusion", range=Range("[1, inf)"), tiers={"fast": 5}),
    ]
    guidance: Annotated[
        float,
        Option(
            "Classifier-free guidance of the decoder, 1 is none",
            default=1.5,
            half="diffusion",
            range=Range("[1, inf)"),
        ),
    ]
    guidance_interval: Annotated[
        tuple[float, float],
        Option(
            "Noise levels LOW and HIGH between which the decoder is guided",
            default=(0.0, 1.0),
            half="diffusion",
            range=Range("[0, 1]"),
            tiers={"fast": (0.6, 1.0)},
            idle=UNGUIDED,
        ),
    ]
    solver: Annotated[
        Solver,
        Option(
            "euler, or ab2 (Adams-Bashforth of second order), which needs fewer steps",
            default="euler",
            half="diffusion",
            tiers={"fast": "ab2"},
        ),
    ]
    schedule_power: Annotated[
        float,
        Option(
            "Below 1 steps are closer together at high noise, which helps where they are few; 1 is even",
            default=1.0,
            half="diffusion",
            range=Range("(0, inf)"),
            tiers={"fast": 0.7},
        ),
    ]
    sigma_min: Annotated[
        float,
        Option(
            "Noise level below which no step begins: the last one goes from there to the clean picture, for a decoder "
            "that has seen little of low noise",
            default=0.0,
            half="diffusion",
            range=Range("[0, 1)"),
            of_models=True,
        ),
    ]
    dynamic_thresholding: Annotated[
        float | None,
        Option(
            "Percentile to which clean estimates are clipped",
            default=None,
            half="diffusion",
            range=Range("(0, 1]"),
        ),
    ]
    negative_text: Annotated[
        str, Option("Text to keep from appearing in the picture", default="", half="diffusion", idle=UNGUIDED)
    ]
    strength: Annotated[
        float,
        Option(
            "Below 1 the new picture starts from the old one",
            default=1.0,
            half="diffusion",
            range=Range("(0, 1]"),
            tasks=("edit",),
        ),
    ]
    feather: Annotated[
        int,
        Option(
            "Pixels over which the new fades in just inside the border of a mask; with a mask or outpaint",
            default=8,
            half="diffusion",
            range=Range("[0, 256]"),
            tasks=("edit",),
        ),
    ]
    temperature: Annotated[
        float,
        Option("Of visual tokens; 0 takes the most likely one", default=0.9, half="tokens", range=Range("[0, inf)")),
    ]
    top_p: Annotated[
        float,
        Option(
            "Nucleus sampling: the most likely tokens that together hold this probability",
            default=0.75,
            half="tokens",
            range=Range("(0, 1]"),
            idle=GREEDY,
        ),
    ]
    top_k: Annotated[
        int,
        Option(
            "Only the k most likely tokens, 0 for all", default=0, half="tokens", range=Range("[0, inf)"), idle=GREEDY
        ),
    ]
    min_p: Annotated[
        float,
        Option(
            "Only tokens at least this share as likely as the most likely one",
            default=0.0,
            half="tokens",
            range=Range("[0, 1)"),
            idle=GREEDY,
        ),
    ]
    token_guidance: Annotated[
        float,
        Option(
            "Classifier-free guidance of the tokens, 1 is none",
            default=1.0,
            half="tokens",
            range=Range("[0, inf)"),
            setting="guidance",
        ),
    ]
    preview_grid: Annotated[
        bool,
        Option(
            "Generate the format's preview grid before the picture's own tokens, or leave it out, which needs a model "
            "that was trained for it; not with references",
            default=True,
            half="tokens",
            tasks=("generate", "upscale"),
            not_with_references="the format gives them no preview",
        ),
    ]
    draft_side: Annotated[
        int,
        Option(
            "Make pictures of more pixels than a square of this side as a draft of about that many first, and enlarge "
            "it: for a model whose tokens were trained at one size; 0 makes none",
            default=0,
            half="tokens",
            range=Range("[0, inf)"),
        ),
    ]
    draft_strength: Annotated[
        float,
        Option(
            "Share of the diffusion that an enlarged draft goes through",
            default=0.5,
            half="tokens",
            range=Range("(0, 1]"),
            idle=DRAFTLESS,
        ),
    ]
    align_references: Annotated[
        bool,
        Option(
            "Show diffusion what references hold at the place where the visual tokens repeat it: for a decoder that "
            "copies best from the same place",
            default=False,
            half="tokens",
        ),
    ]


def declared(entries: type) -> Iterator[Option]:
    """The options of a typed dictionary whose entries are ``Annotated[type, Option(...)]``."""
    for name, hint in get_type_hints(entries, include_extras=True).items():
        kind, option = get_args(hint)
        optional = type(None) in get_args(kind)
        if optional:
            kind = next(one for one in get_args(kind) if one is not type(None))
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        yield replace(option, name=name, type=str if choices else kind, choices=choices, optional=optional)


OPTIONS: dict[str, Option] = {option.name: option for option in declared(SamplingOptions)}
TIERS: dict[Tier, dict[str, Any]] = {
    tier: {option.name: option.at(tier) for option in OPTIONS.values() if option.tiers} for tier in get_args(Tier)
}


def options_of(task: Task) -> list[Option]:
    """What a call or command takes."""
    return [option for option in OPTIONS.values() if task in option.tasks]


def options_of_models() -> list[str]:
    """What a checkpoint may bring defaults for: the options of the tokens, and a few others."""
    return [option.name for option in OPTIONS.values() if option.for_models]


def refuse_misplaced(given: Iterable[str], task: Task, references: bool) -> None:
    """Raise UsageError where an option is given to a task, or beside references, that it is not for."""
    for option in (OPTIONS[name] for name in given if name in OPTIONS):
        if references and option.not_with_references:
            raise UsageError(f"{option.name} has no effect on pictures with references: {option.not_with_references}")
        if task not in option.tasks:
            raise UsageError(f"{option.name} is an option of {' and '.join(option.tasks)}, not of {task}")


def of_model(sampling: Mapping[str, Any], references: bool) -> dict[str, Any]:
    """A checkpoint's own options (:attr:`arimage.checkpoints.checkpoint.Checkpoint.sampling`), for pictures with or
    without references."""
    own = {name: value for name, value in sampling.items() if name != WITH_REFERENCES}
    return own | dict(sampling.get(WITH_REFERENCES) or {}) if references else own


def resolve(
    given: Mapping[str, Any], of_checkpoint: Mapping[str, Any], references: bool = False
) -> tuple[Tier, dict[str, Any]]:
    """The tier, and every setting by its option's name: as given, else the checkpoint's, else the tier's.

    Args:
        of_checkpoint: see :func:`of_model`.
        references: the pictures have some.

    Raises:
        UsageError: a value is of another type or out of its range, or another one leaves it without effect.
    """
    tier: Tier = OPTIONS["tier"].checked(given.get("tier", OPTIONS["tier"].default))
    settings = [option for option in OPTIONS.values() if option.half is not None]
    chosen = {option.name: option.at(tier) for option in settings} | of_model(of_checkpoint, references)
    chosen |= {option.name: given[option.name] for option in settings if option.name in given}
    values = {option.name: option.checked(chosen[option.name]) for option in settings}
    for name, reason in without_effect(values).items():
        if given.get(name):
            raise UsageError(f"{reason}: {name} would have no effect; leave one of them out")
    return tier, values


def without_effect(values: Mapping[str, Any]) -> dict[str, str]:
    """Options that are without effect beside these values, each with the reason."""
    return {
        option.name: option.idle.reason
        for option in OPTIONS.values()
        if option.idle is not None and values[option.idle.option] == option.idle.value
    }


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a recipe holds them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_recipe(settings: Mapping[str, Any], task: Task, references: bool) -> dict[str, Any]:
    """The options that give a recipe's settings again; what it does not hold had its default."""
    values = {option.name: option.default for option in OPTIONS.values() if option.half is not None} | dict(settings)
    idle = without_effect(values)
    for option in OPTIONS.values():
        if option.name in idle or task not in option.tasks or (references and option.not_with_references):
            values.pop(option.name, None)
    return values
