"""A loaded model that makes and edits pictures: arguments to requests, and what the engine made to results."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack, cast

import torch
from PIL import Image

import arimage
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.lora import LoraInput, lora_inputs, read_adapters
from arimage.checkpoints.quantization import Quantization
from arimage.errors import UsageError
from arimage.images.canvas import Canvas, Margins, make_canvas
from arimage.images.inputs import several
from arimage.images.masks import FEATHER
from arimage.images.opening import Picture
from arimage.images.provenance import described_by
from arimage.images.recipe import AdapterSource, Recipe, Variation
from arimage.images.sizes import Size, enlarged_size, middle_of, parse_size, size_like
from arimage.inference.arguments import (
    MAX_PROMPT_TOKENS,
    Input,
    checked_prompts,
    layout_notices,
    numbered,
    open_all,
    refuse_broken,
    source_of,
    watching,
)
from arimage.inference.calls import Call
from arimage.inference.engine import Engine
from arimage.inference.exploration import Exploration, checked_change, checked_picks, variation_of
from arimage.inference.networks import Networks, Placement, choose_device, choose_dtype
from arimage.inference.requests import EngineImage, ImageRequest, ProgressCallback
from arimage.inference.results import GeneratedImage
from arimage.inference.rewriting import rewriter_of
from arimage.inference.settings import Options, Settings, settings_from
from arimage.options import Task, Tier, recorded, refuse_misplaced
from tokenizer.image_size import reference_size


class ImagePipeline:
    """A loaded model. Networks are read when they are first needed.

    Args:
        checkpoint: an opened folder.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``; None takes a GPU when there is one.
        dtype: None is fp32 on a CPU and bf16 on a GPU.
        placement: ``resident`` keeps networks, ``sequential`` holds one at a time.
        lora: adapters that are merged into the weights: folders or files of peft or diffusers, each a path, a
            (path, strength) or ``"path:strength"``; see :func:`arimage.checkpoints.lora.read_adapters`.
        quantization: ``int8``, ``fp8`` or (on a GPU) ``int4``: large matrices of the two large networks are held in
            8 or 4 bits, see :mod:`arimage.checkpoints.quantization`.
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
        quantization: Quantization | None = None,
        compile: bool = False,
    ) -> None:
        chosen = choose_device(device)
        self.checkpoint = checkpoint
        adapters = [read_adapters(one, checkpoint.config) for one in lora_inputs(lora)]
        precision = choose_dtype(dtype, chosen)
        self.networks = Networks(checkpoint, chosen, precision, placement, adapters, quantization, compile)
        self.engine = Engine(self.networks)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        size: Size = None,
        images_per_prompt: int = 1,
        seed: int | None = None,
        references: Input | Sequence[Input] | None = (),
        layout: Input | None = None,
        **options: Unpack[Options],
    ) -> list[GeneratedImage]:
        """Make pictures from text, and from references that the text speaks of.

        Args:
            prompt: one or several; what stands in quotes is written into the picture.
            size: a side for a square, (width, height), ``"640x480"``, or an aspect such as ``"landscape"``; sides
                are multiples of 32. None is the model's usual square, or its usual area in the layout's aspect.
            images_per_prompt: at least 1.
            seed: of the first picture; the i-th uses ``seed + i``. None draws one, which the recipe records.
            references: pictures of any size for every prompt (style, identity, objects to combine): paths, bytes, open
                files, data URLs, Pillow pictures, NumPy arrays or results of earlier calls.
            layout: a sketch or rough picture whose composition every picture follows: the preview grid is made of it
                instead of being generated. Of another aspect than ``size`` its middle is taken.
            **options: see :class:`Options`.

        Returns:
            ``images_per_prompt`` pictures for each prompt, in order.

        Raises:
            UsageError: an argument is wrong.
            InputImageError: a reference cannot be used.
            Cancelled: ``cancel`` was set.
        """
        call = self.prepare_generation(
            prompt,
            size=size,
            images_per_prompt=images_per_prompt,
            seed=seed,
            references=references,
            layout=layout,
            **options,
        )
        return self.run(call, **options)

    def prepare_generation(
        self,
        prompt: str | Sequence[str],
        *,
        size: Size = None,
        images_per_prompt: int = 1,
        seed: int | None = None,
        references: Input | Sequence[Input] | None = (),
        layout: Input | None = None,
        **options: Unpack[Options],
    ) -> Call:
        """What :meth:`generate` would run, checked and opened; no network is needed for it. Callbacks are left out."""
        prompts = checked_prompts(prompt)
        opened = open_all([] if references is None else several(references), "reference")
        refuse_misplaced(options, "generate", references=bool(opened) and layout is None)
        sketch, followed, limits = None, None, self.engine.limits
        if layout is None:
            working = parse_size(size, limits)
        else:
            options = self._with_preview(options, "layout")
            sketch = open_all([layout], "layout")[0]
            working = size_like(sketch.size, limits) if size is None else parse_size(size, limits)
            followed = middle_of(sketch.flattened(), working)
            sketch = replace(sketch, notices=(*sketch.notices, *layout_notices(sketch, followed, bool(opened))))
        shared = tuple(picture.flattened() for picture in opened)
        chosen = settings_from(options, self.checkpoint.sampling, bool(opened))
        asked = numbered(prompts, images_per_prompt, seed)
        revised, notices = _rewritten(prompts, "generate", options)
        requests = [
            ImageRequest(revised[text], working, number, references=shared, layout=followed) for text, number in asked
        ]
        return self._call("generate", requests, opened, chosen, layout=sketch, notices=notices)

    def upscale(
        self,
        image: Input,
        prompt: str | None = None,
        *,
        size: int | None = None,
        images_per_prompt: int = 1,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> list[GeneratedImage]:
        """Make a picture anew at a larger size, as its own preview or, where the model makes drafts, as its own draft;
        its aspect is kept.

        Args:
            image: the picture, anything that stands for one at :meth:`generate`.
            prompt: what it shows; by default what its recipe says, or another program's parameters.
            size: of the longer side in pixels; by default twice the picture's, as far as the model goes.
            images_per_prompt: results, which differ in their seeds.
            seed, **options: as in :meth:`generate`.

        Raises:
            UsageError: an argument is wrong, or the picture does not say what it shows.
            InputImageError: the picture cannot be used.
            Cancelled: ``cancel`` was set.
        """
        refuse_misplaced(options, "upscale", references=False)
        if prompt is not None and not isinstance(prompt, str):
            raise UsageError(f"upscale takes one prompt, a string; got {type(prompt).__name__}")
        opened = open_all([image], "picture")
        working, output = enlarged_size(opened[0].size, size, self.engine.limits)
        chosen = settings_from(options, self.checkpoint.sampling)
        by_draft = chosen[2].draft_side > 0 and not chosen[2].preview_grid
        if not by_draft:
            chosen = settings_from(self._with_preview(options, "upscaling"), self.checkpoint.sampling)
        text = described_by(image.recipe if isinstance(image, GeneratedImage) else image) if prompt is None else prompt
        picture = opened[0].flattened()
        asked = numbered([text], images_per_prompt, seed)
        revised, notices = _rewritten([text], "generate", options)
        shown: dict[str, Any] = {"draft" if by_draft else "layout": picture}
        requests = [ImageRequest(revised[text], working, number, output_size=output, **shown) for _, number in asked]
        call = self._call("upscale", requests, [], chosen, layout=opened[0], notices=notices)
        return self.run(call, **options)

    def explore(
        self,
        prompt: str,
        *,
        count: int = 9,
        pick: int | Sequence[int] | None = None,
        change: float = 0.5,
        size: Size = None,
        seed: int | None = None,
        references: Input | Sequence[Input] | None = (),
        layout: Input | None = None,
        **options: Unpack[Options],
    ) -> Exploration:
        """Make several pictures of one prompt, or vary one of them.

        A variation keeps the preview grid and most visual tokens of the picture that was picked; the others are drawn
        anew, and so is the noise of its diffusion.

        Args:
            count: how many.
            pick: seed of the picture to vary, which is any that the same arguments make; of several seeds each is
                that of a variation of the one before.
            change: share of a picked picture's visual tokens that are drawn anew; 0 keeps all, so that only the noise
                is another.
            prompt, size, seed, references, layout, **options: as in :meth:`generate`.

        Raises:
            UsageError: an argument is wrong.
            InputImageError: a reference or the layout cannot be used.
            Cancelled: ``cancel`` was set.
        """
        if not isinstance(prompt, str):
            raise UsageError(f"explore takes one prompt, a string; got {type(prompt).__name__}")
        if not isinstance(count, int) or count < 1:
            raise UsageError(f"count must be a whole number of at least 1, got {count!r}")
        picks, change = checked_picks(pick), checked_change(change)
        if picks and options.get("rewrite") is not None:
            raise UsageError(
                "rewrite would change the prompt by which the picked picture is drawn: give its own prompt"
            )
        call = self.prepare_generation(
            prompt, size=size, images_per_prompt=count, seed=seed, references=references, layout=layout, **options
        )
        if picks:
            watched = watching(options)
            base = replace(call.requests[0], seed=picks[0])
            for one in picks[1:]:
                base = variation_of(self.engine.draw_tokens([base], call.settings, watched)[0], one, change)
            base = self.engine.draw_tokens([base], call.settings, watched)[0]
            requests = tuple(variation_of(base, request.seed, change) for request in call.requests)
            extras = call.extras | {"variation": Variation(of=picks, change=change)}
            call = replace(call, requests=requests, extras=extras)
        return Exploration(tuple(self.run(call, **options)))

    def _with_preview(self, options: Options, purpose: str) -> Options:
        """The options of pictures whose preview grid is given.

        Raises:
            UsageError: they leave the preview out, or the model's own way of drawing tokens does.
        """
        if not options.get("preview_grid", True):
            raise UsageError(f"{purpose} is by the preview grid, which preview_grid=False leaves out")
        if "preview_grid" not in options and not self.checkpoint.sampling.get("preview_grid", True):
            raise UsageError(
                f"{purpose} needs a model that was trained with the picture as its preview grid, and "
                f"{self.checkpoint.name} draws pictures without one; preview_grid=True tries it all the same"
            )
        return options | {"preview_grid": True}

    def edit(
        self,
        image: Input | Sequence[Input],
        prompt: str = "",
        *,
        mask: Input | None = None,
        mask_polarity: Literal["white", "black"] = "white",
        outpaint: Margins | None = None,
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
            size: of the result, as in :meth:`generate`; by default the picture's own.
            images_per_prompt, seed, **options: as in :meth:`generate`.

        Raises:
            UsageError: an argument is wrong, or two do not go together.
            InputImageError: a picture or the mask cannot be used.
            Cancelled: ``cancel`` was set.
        """
        call = self.prepare_edit(
            image,
            prompt,
            mask=mask,
            mask_polarity=mask_polarity,
            outpaint=outpaint,
            size=size,
            images_per_prompt=images_per_prompt,
            seed=seed,
            **options,
        )
        return self.run(call, **options)

    def prepare_edit(
        self,
        image: Input | Sequence[Input],
        prompt: str = "",
        *,
        mask: Input | None = None,
        mask_polarity: Literal["white", "black"] = "white",
        outpaint: Margins | None = None,
        size: Size = None,
        images_per_prompt: int = 1,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> Call:
        """What :meth:`edit` would run, checked and opened; no network is needed for it. Callbacks are left out."""
        refuse_misplaced(options, "edit", references=True)
        if not isinstance(prompt, str):
            raise UsageError(f"edit takes one instruction, a string; got {type(prompt).__name__}")
        sources = several(image)
        if not sources:
            raise UsageError("edit needs at least one picture")
        protecting = mask is not None or outpaint is not None
        opened = open_all(sources, "picture", deep=protecting)
        covering = None if mask is None else open_all([mask], "mask", deep=True)[0]
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
        chosen = settings_from(options, self.checkpoint.sampling, references=True)
        if canvas.mask is None and chosen[2].feather != FEATHER:
            raise UsageError("feather needs a mask or outpaint, whose border it softens")
        needs_canvas = canvas.mask is not None or chosen[2].decoder.strength < 1
        asked = numbered([prompt], images_per_prompt, seed)
        revised, notices = _rewritten([prompt], "edit", options)
        requests = [
            ImageRequest(
                revised[text],
                working,
                number,
                references=shared,
                canvas=canvas.networks if needs_canvas else None,
                mask=canvas.mask,
                output_size=output,
            )
            for text, number in asked
        ]
        extras = {
            "mask": None if covering is None else source_of(covering),
            "mask_polarity": mask_polarity,
            "outpaint": outpaint,
        }
        return self._call("edit", requests, opened, chosen, canvas, extras=extras, notices=notices)

    def draw_tokens(self, calls: Sequence[Call], on_progress: ProgressCallback | None = None) -> list[Call]:
        """The calls with the codes of their pictures, generated in one batch where tokens are drawn alike.

        :meth:`run` makes of them the very pictures that it would make without. What ``on_progress`` raises ends it.
        """
        alike: dict[tuple[object, ...], list[int]] = {}
        for number, call in enumerate(calls):
            alike.setdefault((call.settings.tokens, call.settings.preview_grid), []).append(number)
        drawn = list(calls)
        for numbers in alike.values():
            together = [request for number in numbers for request in calls[number].requests]
            made = iter(self.engine.draw_tokens(together, calls[numbers[0]].settings, on_progress))
            for number in numbers:
                requests = tuple(itertools.islice(made, len(calls[number].requests)))
                drawn[number] = replace(calls[number], requests=requests)
        return drawn

    def run(self, call: Call, *, estimates: int | None = None, **options: Unpack[Options]) -> list[GeneratedImage]:
        """Make the pictures of a call.

        Args:
            estimates: how many clean estimates ``on_preview`` is given of each picture, evenly spread over its
                diffusion; None gives one every few steps.
            **options: of which the callbacks and ``cancel`` are used; the others are the call's own.

        Raises:
            Cancelled: ``cancel`` was set.
        """
        on_image = options.get("on_image")
        finished: list[GeneratedImage] = []

        def finish(made: EngineImage) -> None:
            result = self.result(call, call.requests[len(finished)], made)
            finished.append(result)
            if on_image is not None:
                on_image(result)

        on_preview = options.get("on_preview")
        each = None if on_image is None else finish
        made = self.engine.run(call.requests, call.settings, watching(options), on_preview, each, estimates)
        for image in made[len(finished) :]:
            finish(image)
        return finished

    def result(self, call: Call, request: ImageRequest, made: EngineImage) -> GeneratedImage:
        """What the engine made of a request of a call, with what it protects and its recipe."""
        image = made.image if call.canvas is None else call.canvas.finish(made.image)
        deep = None if call.canvas is None else call.canvas.finish_deep(image)
        recipe = self._recipe(call, request, image)
        return GeneratedImage(image, recipe, made.codes, made.preview_codes, call.icc_profile, call.notices, deep)

    def make(self, requests: Sequence[ImageRequest], **options: Unpack[Options]) -> list[EngineImage]:
        """Run any mixture of requests in one call, without recipes; for programs that make many pictures.

        Where the model draws tokens in another way for pictures with references, those come after the others.

        Args:
            requests: what to make, see :class:`arimage.inference.requests.ImageRequest`.
            **options: see :class:`Options`; ``on_image`` is given :class:`arimage.inference.requests.EngineImage`.

        Raises:
            UsageError: an option is wrong.
            Cancelled: ``cancel`` was set.
        """
        if options.get("rewrite") is not None:
            raise UsageError("make takes prompts as they are: rewrite them first, with arimage.Rewriter")
        without, having = (settings_from(options, self.checkpoint.sampling, kind)[2] for kind in (False, True))
        alike: dict[Settings, list[int]] = {without: []}
        for place, request in enumerate(requests):
            alike.setdefault(having if request.references else without, []).append(place)
        on_image = cast("Callable[[EngineImage], None] | None", options.get("on_image"))
        for settings, places in alike.items():
            self._check([requests[place] for place in places], settings)
        made: dict[int, EngineImage] = {}
        for settings, places in alike.items():
            own = [self.engine.with_draft(requests[place], settings) for place in places]
            images = self.engine.run(own, settings, watching(options), options.get("on_preview"), on_image)
            made |= dict(zip(places, images))
        return [made[place] for place in range(len(requests))]

    def _call(
        self,
        task: Task,
        requests: Sequence[ImageRequest],
        opened: Sequence[Picture],
        chosen: tuple[Tier, dict[str, Any], Settings],
        canvas: Canvas | None = None,
        layout: Picture | None = None,
        extras: dict[str, Any] | None = None,
        notices: Sequence[str] = (),
    ) -> Call:
        tier, values, settings = chosen
        requests = [self.engine.with_draft(request, settings) for request in requests]
        self._check(requests, settings)
        given = [*opened, *([] if layout is None else [layout])]
        notices = (*notices, *(notice for picture in given for notice in picture.notices))
        return Call(
            task,
            tuple(requests),
            tier,
            values,
            settings,
            sources=tuple(source_of(picture) for picture in opened),
            canvas=canvas,
            icc_profile=None if task == "generate" else given[0].icc_profile,
            notices=notices + (() if canvas is None else canvas.notices),
            extras={"layout": None if layout is None else source_of(layout)} | (extras or {}),
        )

    def _check(self, requests: Sequence[ImageRequest], settings: Settings) -> None:
        """What depends on the model and the requests; texts must be such as a recipe can hold."""
        most = self.engine.config.scheduler.num_train_timesteps
        if settings.decoder.steps > most:
            raise UsageError(f"steps must lie in 1..{most}, got {settings.decoder.steps}")
        if settings.decoder.strength < 1 and any(request.canvas is None for request in requests):
            raise UsageError("strength below 1 needs a canvas in every request, to start from")
        refuse_broken("negative_text", settings.negative_text)
        for prompt in {request.prompt for request in requests}:
            refuse_broken("the prompt", prompt)
            tokens = len(self.engine.vocabulary.encode(prompt))
            if tokens > MAX_PROMPT_TOKENS:
                raise UsageError(f"the prompt has {tokens} tokens, at most {MAX_PROMPT_TOKENS} are read: shorten it")

    def _recipe(self, call: Call, request: ImageRequest, image: Image.Image) -> Recipe:
        return Recipe(
            arimage=arimage.__version__,
            model=self.checkpoint.name,
            weights_sha256=self.networks.weights_hash(),
            random_weights=self.checkpoint.is_random,
            lora=tuple(
                AdapterSource(path=str(one.path.resolve()), sha256=one.sha256, strength=one.strength)
                for one in self.networks.adapters
            ),
            task=call.task,
            prompt=request.prompt,
            seed=request.seed,
            size=request.size[::-1],
            output_size=image.size,
            settings=recorded(call.values),
            references=call.sources,
            tier=call.tier,
            device=str(self.networks.device),
            dtype=self.networks.precision,
            torch=torch.__version__,
            **call.extras,
        )


def _rewritten(prompts: Sequence[str], task: Task, options: Options) -> tuple[dict[str, str], list[str]]:
    """What to use for each prompt, which is the prompt itself unless ``rewrite`` is asked for; and why where it is."""
    rewrite = rewriter_of(options.get("rewrite"))
    if rewrite is None:
        return {prompt: prompt for prompt in prompts}, []
    results = {prompt: rewrite(prompt, task) for prompt in dict.fromkeys(prompts)}
    notices = dict.fromkeys(one.notice for one in results.values() if one.notice is not None)
    return {prompt: one.prompt for prompt, one in results.items()}, list(notices)
