"""The front doors: :func:`load`, :func:`generate`, :func:`edit`, and :class:`ImagePipeline` behind them."""

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import arimage
from arimage.autoregressive.sampling import TokenSampling
from arimage.canvas import Canvas, Margins, make_canvas
from arimage.checkpoint import SAMPLING, Checkpoint
from arimage.embedded import embedded_folder
from arimage.engine import Engine, EngineImage, ImageRequest, Preview, Progress, Settings
from arimage.errors import Cancelled, UsageError, nearest
from arimage.hub import find
from arimage.images import Picture, PictureInput, open_picture
from arimage.inputs import several
from arimage.lora import LoraInput, lora_inputs, read_adapters
from arimage.networks import Networks, Placement, choose_device, choose_dtype
from arimage.output import EDITED, GENERATED, encode_picture, format_named, save_picture
from arimage.quantization import WeightKind
from arimage.recipe import AdapterSource, Recipe, Source, is_text
from arimage.sizes import Size, parse_size
from decoder.sampler import Solver
from tokenizer.image_size import reference_size

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
MAX_SEED = 2**63
MAX_PROMPT_TOKENS = 4096


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


@dataclass(frozen=True)
class GeneratedImage:
    """A picture and how it was made.

    Attributes:
        image: RGB, or RGBA where an edited picture keeps its transparency.
        recipe: everything needed to make it again; it is written into the file.
        tokens: (h, w) visual tokens.
        preview_tokens: the preview grid, None for edits.
        icc_profile: of the edited picture, kept.
        notices: what should be known about the inputs.
        deep: the picture in 16 bits a channel, (H, W, 3 or 4) uint16, where a mask protects some; PNGs hold them.
    """

    image: Image.Image
    recipe: Recipe
    tokens: Tensor
    preview_tokens: Tensor | None = None
    icc_profile: bytes | None = field(default=None, repr=False)
    notices: tuple[str, ...] = ()
    deep: np.ndarray | None = field(default=None, repr=False)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.to_bytes()

    def to_bytes(self, format: str = "png", *, recipe: bool = True, ai_mark: bool = True) -> bytes:
        """The contents of the file that :meth:`save` would write, recipe and mark included.

        Args:
            format: ``png``, ``jpeg`` or ``webp``.

        Raises:
            UsageError: the format is another one.
            ArimageError: the format cannot hold the picture.
        """
        return encode_picture(self.image, format_named(format), **self._file(recipe, ai_mark))

    def save(self, path: str | os.PathLike[str], *, recipe: bool = True, ai_mark: bool = True) -> Path:
        """Write it as PNG, JPEG or WebP, whole or not at all; see :func:`arimage.output.save_picture`.

        What was protected by a mask or by outpainting is kept bit for bit by PNG and WebP, not by JPEG.
        """
        return save_picture(self.image, path, **self._file(recipe, ai_mark))

    def _file(self, recipe: bool, ai_mark: bool) -> dict[str, Any]:
        """What a file holds besides the picture itself."""
        kind = GENERATED if self.recipe.task == "generate" else EDITED
        return {
            "recipe": self.recipe if recipe else None,
            "ai_mark": kind if ai_mark else None,
            "icc_profile": self.icc_profile,
            "lossless": self.recipe.protects,
            "deep": self.deep,
        }


Input = PictureInput | GeneratedImage


class ImagePipeline:
    """A loaded model. Networks are read when they are first needed.

    Args:
        checkpoint: an opened folder.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``; None takes a GPU when there is one.
        dtype: None is fp32 on a CPU and bf16 on a GPU.
        placement: ``resident`` keeps networks, ``sequential`` holds one at a time.
        lora: adapters that are merged into the weights: folders or files of peft or diffusers, each a path, a
            (path, strength) or ``"path:strength"``; see :func:`arimage.lora.read_adapters`.
        weights: ``int8``, ``fp8`` or (on a GPU) ``int4`` quantises the two large networks, see
            :mod:`arimage.quantization`.
        compile: on a GPU, compile the decoder's blocks and the token step (``torch.compile``), which is then recorded
            as a CUDA graph; the first picture of a size takes longer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        placement: Placement = "resident",
        lora: LoraInput | Sequence[LoraInput] = (),
        weights: WeightKind | None = None,
        compile: bool = False,
    ) -> None:
        chosen = choose_device(device)
        self.checkpoint = checkpoint
        adapters = [read_adapters(one, checkpoint.config) for one in lora_inputs(lora)]
        precision = choose_dtype(dtype, chosen)
        self.networks = Networks(checkpoint, chosen, precision, placement, adapters, weights, compile)
        self.engine = Engine(self.networks)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        size: Size = None,
        images_per_prompt: int = 1,
        seed: int | None = None,
        references: Input | Sequence[Input] | None = (),
        **options: Unpack[Options],
    ) -> list[GeneratedImage]:
        """Make pictures from text, and from references that the text speaks of.

        Args:
            prompt: one or several; what stands in quotes is written into the picture.
            size: a side for a square, (width, height), ``"640x480"``, or an aspect such as ``"landscape"``; sides
                are multiples of 32. None is the model's usual square.
            images_per_prompt: at least 1.
            seed: of the first picture; the i-th uses ``seed + i``. None draws one, which the recipe records.
            references: pictures of any size for every prompt (style, identity, objects to combine): paths, bytes, open
                files, data URLs, Pillow pictures, NumPy arrays or results of earlier calls.
            **options: see :class:`Options`.

        Returns:
            ``images_per_prompt`` pictures for each prompt, in order.

        Raises:
            UsageError: an argument is wrong.
            InputImageError: a reference cannot be used.
            Cancelled: ``cancel`` was set.
        """
        prompts = _prompts(prompt)
        opened = _opened([] if references is None else several(references), "reference")
        working = parse_size(size, self.engine.limits)
        shared = tuple(picture.flattened() for picture in opened)
        if shared:
            _refuse_preview(options)
        requests = [
            ImageRequest(text, working, number, references=shared)
            for text, number in _numbered(prompts, images_per_prompt, seed)
        ]
        return self._run("generate", requests, opened, options)

    def edit(
        self,
        image: Input | Sequence[Input],
        prompt: str = "",
        *,
        mask: Input | None = None,
        mask_polarity: Literal["white", "black"] = "white",
        outpaint: Margins | None = None,
        strength: float = 1.0,
        size: Size = None,
        images_per_prompt: int = 1,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> list[GeneratedImage]:
        """Edit a picture by an instruction; without one, make a variation of it.

        Args:
            image: the picture to edit, or several: the first is edited, the others are references. What stands for a
                picture is said at :meth:`generate`.
            prompt: the instruction.
            mask: where the picture may change; everything else stays bit for bit.
            mask_polarity: which colour of the mask may change.
            outpaint: pixels to add at the left, top, right and bottom.
            strength: in (0, 1]; below 1 the new picture starts from the old one.
            size: of the result, as in :meth:`generate`; by default the picture's own.
            images_per_prompt, seed, **options: as in :meth:`generate`.

        Raises:
            UsageError: an argument is wrong, or two do not go together.
            InputImageError: a picture or the mask cannot be used.
            Cancelled: ``cancel`` was set.
        """
        _refuse_preview(options)
        if not isinstance(prompt, str):
            raise UsageError(f"edit takes one instruction, a string; got {type(prompt).__name__}")
        sources = several(image)
        if not sources:
            raise UsageError("edit needs at least one picture")
        protecting = mask is not None or outpaint is not None
        opened = _opened(sources, "picture", deep=protecting)
        covering = None if mask is None else _opened([mask], "mask", deep=True)[0]
        canvas = make_canvas(opened[0], covering, mask_polarity, outpaint)
        if mask is None and mask_polarity != "white":
            raise UsageError("mask_polarity needs a mask")
        if size is not None and canvas.mask is not None:
            raise UsageError("size does not go with a mask or outpaint: what is protected keeps its own size")
        if size is None:
            working = reference_size(*canvas.size, self.engine.limits)
            output = canvas.size
        else:
            working = output = parse_size(size, self.engine.limits)
        shared = tuple(picture.flattened() for picture in opened)
        needs_canvas = canvas.mask is not None or strength < 1
        requests = [
            ImageRequest(
                text,
                working,
                number,
                references=shared,
                canvas=canvas.networks if needs_canvas else None,
                mask=canvas.mask,
                output_size=output,
            )
            for text, number in _numbered([prompt], images_per_prompt, seed)
        ]
        extras = {
            "mask": None if covering is None else _source(covering),
            "mask_polarity": mask_polarity,
            "outpaint": outpaint,
        }
        return self._run("edit", requests, opened, options, canvas, strength, extras)

    def make(self, requests: Sequence[ImageRequest], **options: Unpack[Options]) -> list[EngineImage]:
        """Run any mixture of requests in one call, without recipes; for programs that make many pictures.

        Args:
            requests: what to make, see :class:`arimage.engine.ImageRequest`.
            **options: see :class:`Options`; ``on_image`` is given :class:`arimage.engine.EngineImage`.

        Raises:
            UsageError: an option is wrong.
            Cancelled: ``cancel`` was set.
        """
        _, settings = _settings(options, 1.0, self.checkpoint.sampling)
        self._check(requests, settings)
        on_image = cast("Callable[[EngineImage], None] | None", options.get("on_image"))
        return self.engine.run(requests, settings, _watched(options), options.get("on_preview"), on_image)

    def _run(
        self,
        task: Literal["generate", "edit"],
        requests: Sequence[ImageRequest],
        opened: Sequence[Picture],
        options: Options,
        canvas: Canvas | None = None,
        strength: float = 1.0,
        extras: dict[str, Any] | None = None,
    ) -> list[GeneratedImage]:
        tier, settings = _settings(options, strength, self.checkpoint.sampling)
        self._check(requests, settings)
        on_image = options.get("on_image")
        notices = tuple(notice for picture in opened for notice in picture.notices)
        notices += () if canvas is None else canvas.notices
        sources = tuple(_source(picture) for picture in opened)
        profile = opened[0].icc_profile if task == "edit" else None
        finished: list[GeneratedImage] = []

        def finish(made: EngineImage) -> None:
            image = made.image if canvas is None else canvas.finish(made.image)
            deep = None if canvas is None else canvas.finish_deep(image)
            recipe = self._recipe(task, requests[len(finished)], settings, tier, sources, image, extras or {})
            finished.append(GeneratedImage(image, recipe, made.tokens, made.preview_tokens, profile, notices, deep))
            if on_image is not None:
                on_image(finished[-1])

        on_preview = options.get("on_preview")
        each = None if on_image is None else finish
        made = self.engine.run(requests, settings, _watched(options), on_preview, each)
        for image in made[len(finished) :]:
            finish(image)
        return finished

    def _check(self, requests: Sequence[ImageRequest], settings: Settings) -> None:
        """What depends on the model: steps and the length of prompts. Texts must be such as a recipe can hold."""
        most = self.engine.config.scheduler.num_train_timesteps
        if settings.steps > most:
            raise UsageError(f"steps must lie in 1..{most}, got {settings.steps}")
        _refuse_broken("negative_text", settings.negative_text)
        for prompt in {request.prompt for request in requests}:
            _refuse_broken("the prompt", prompt)
            tokens = len(self.engine.vocabulary.encode(prompt))
            if tokens > MAX_PROMPT_TOKENS:
                raise UsageError(f"the prompt has {tokens} tokens, at most {MAX_PROMPT_TOKENS} are read: shorten it")

    def _recipe(
        self,
        task: Literal["generate", "edit"],
        request: ImageRequest,
        settings: Settings,
        tier: Tier,
        sources: tuple[Source, ...],
        image: Image.Image,
        extras: dict[str, Any],
    ) -> Recipe:
        return Recipe(
            arimage=arimage.__version__,
            model=self.checkpoint.name,
            weights_sha256=self.networks.weights_hash(),
            random_weights=self.checkpoint.is_random,
            lora=tuple(
                AdapterSource(path=str(one.path.resolve()), sha256=one.sha256, strength=one.strength)
                for one in self.networks.adapters
            ),
            task=task,
            prompt=request.prompt,
            seed=request.seed,
            size=request.size[::-1],
            output_size=image.size,
            settings=_flat(settings),
            references=sources,
            tier=tier,
            device=str(self.networks.device),
            dtype=self.networks.precision,
            torch=torch.__version__,
            **extras,
        )


def _watched(options: Options) -> Callable[[Progress], None]:
    """What is called as a call goes on: the caller's ``on_progress``, and its end where ``cancel`` is set.

    Raises:
        UsageError: an option is nothing that can be called, or no event.
        Cancelled: ``cancel`` is set already.
    """
    on_progress, cancel = options.get("on_progress"), options.get("cancel")
    for name in ("on_progress", "on_preview", "on_image"):
        if options.get(name) is not None and not callable(options.get(name)):
            raise UsageError(f"{name} must be a function, got {type(options.get(name)).__name__}")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise UsageError(f"cancel must be an event such as threading.Event, got {type(cancel).__name__}")
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled before it began")

    def watched(progress: Progress) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"cancelled at {progress.stage} {progress.done} of {progress.total}")
        if on_progress is not None:
            on_progress(progress)

    return watched


def _opened(sources: Sequence[Any], called: str, deep: bool = False) -> list[Picture]:
    """Inputs, results of earlier calls among them, as pictures; with ``deep`` the first has all of its 16 bits."""
    pictures = []
    for number, source in enumerate(sources):
        name = f"the {called}" if len(sources) == 1 else f"{called} {number + 1}"
        whole = deep and number == 0
        if isinstance(source, GeneratedImage):
            picture = replace(open_picture(source.image, called=name), icc_profile=source.icc_profile)
            if whole and source.deep is not None:
                picture = replace(picture, bits=16, deep=source.deep)
        else:
            picture = open_picture(source, deep=whole, called=name)
        pictures.append(picture)
    return pictures


def _prompts(prompt: str | Sequence[str]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) or not isinstance(prompt, Iterable) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise UsageError("prompt must be a text or a list of texts, at least one")
    return prompts


def _numbered(prompts: Sequence[str], images_per_prompt: int, seed: int | None) -> list[tuple[str, int]]:
    """Each picture's prompt and seed."""
    if not isinstance(images_per_prompt, int) or images_per_prompt < 1:
        raise UsageError(f"images_per_prompt must be a whole number of at least 1, got {images_per_prompt!r}")
    seed = secrets.randbelow(2**32) if seed is None else seed
    texts = [text for text in prompts for _ in range(images_per_prompt)]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED - len(texts):
        raise UsageError(f"seed must be a whole number in 0..2**63-1, room for every picture included; got {seed!r}")
    return [(text, seed + i) for i, text in enumerate(texts)]


def _settings(options: Options, strength: float, sampling: Mapping[str, float]) -> tuple[Tier, Settings]:
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


def _refuse_broken(name: str, text: str) -> None:
    if not is_text(text):
        raise UsageError(f"{name} {text!a} is not valid text: write it in UTF-8")


def _refuse_preview(options: Options) -> None:
    if "preview_grid" in options:
        raise UsageError("preview_grid has no effect on pictures with references: the format gives them no preview")


def _flat(settings: Settings) -> dict[str, Any]:
    """Settings by the names of the options."""
    values = asdict(settings)
    tokens = values.pop("tokens")
    tokens["token_guidance"] = tokens.pop("guidance")
    return {**values, **tokens, "guidance_interval": list(settings.guidance_interval)}


def _source(picture: Picture) -> Source:
    path = None if picture.path is None else str(Path(picture.path).resolve())
    return Source(path=path, sha256=picture.sha256())


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    placement: Placement = "resident",
    lora: LoraInput | Sequence[LoraInput] = (),
    weights: WeightKind | None = None,
    compile: bool = False,
) -> ImagePipeline:
    """Open a checkpoint, the embedded model by default; the arguments are those of :class:`ImagePipeline`.

    Args:
        path: a folder, or ``owner/name`` of a hub repository that is in the local cache.

    Raises:
        CheckpointError: the folder cannot be used.
        UsageError: device, dtype, placement or weights is wrong.
    """
    checkpoint = Checkpoint.open(embedded_folder() if path is None else path)
    return ImagePipeline(checkpoint, device, dtype, placement, lora, weights, compile)


@lru_cache(maxsize=1)
def _loaded(path: str | None) -> ImagePipeline:
    return load(path)


def _pipeline(model: "str | os.PathLike[str] | ImagePipeline | None") -> ImagePipeline:
    if isinstance(model, ImagePipeline):
        return model
    return _loaded(None if model is None else str(find(model, "a folder").resolve()))


def generate(
    prompt: str | Sequence[str],
    *,
    model: str | os.PathLike[str] | ImagePipeline | None = None,
    size: Size = None,
    images_per_prompt: int = 1,
    seed: int | None = None,
    references: Input | Sequence[Input] | None = (),
    **options: Unpack[Options],
) -> list[GeneratedImage]:
    """Make pictures from text: :meth:`ImagePipeline.generate` of the embedded model, or of ``model``.

    ``model`` is a checkpoint folder or a loaded pipeline; the folder last used stays loaded.
    """
    return _pipeline(model).generate(
        prompt, size=size, images_per_prompt=images_per_prompt, seed=seed, references=references, **options
    )


def edit(
    image: Input | Sequence[Input],
    prompt: str = "",
    *,
    model: str | os.PathLike[str] | ImagePipeline | None = None,
    mask: Input | None = None,
    mask_polarity: Literal["white", "black"] = "white",
    outpaint: Margins | None = None,
    strength: float = 1.0,
    size: Size = None,
    images_per_prompt: int = 1,
    seed: int | None = None,
    **options: Unpack[Options],
) -> list[GeneratedImage]:
    """Edit a picture: :meth:`ImagePipeline.edit` of the embedded model, or of ``model``."""
    return _pipeline(model).edit(
        image,
        prompt,
        mask=mask,
        mask_polarity=mask_polarity,
        outpaint=outpaint,
        strength=strength,
        size=size,
        images_per_prompt=images_per_prompt,
        seed=seed,
        **options,
    )
