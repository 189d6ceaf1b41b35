"""Requests to pictures: references, visual tokens, diffusion, pixels.

:class:`Engine` runs any mixture of requests (texts, sizes, references, masks) in groups: stage by stage, so that each
network is needed once a group and tokens of its pictures are generated in one batch. What a picture looks like depends
on its own request and the settings alone.

The stages may be called one by one, on machines of their own: :meth:`Engine.encode`, :meth:`Engine.tokens`,
:meth:`Engine.diffuse`, :meth:`Engine.render`. No picture passes from one to the next, only :class:`Encoded`, codes and
latents.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from arimage.autoregressive.generation import TOKEN_BATCH, UNCONSTRAINED, TokenProgress, TokenRequest, generate_grids
from arimage.autoregressive.layout import Grid, Prompt, build_prompt, grid_of_aspect, preview_grid, target_grid
from arimage.images.masks import FEATHER
from arimage.images.sizes import enlarged, resized
from arimage.inference.alignment import aligned
from arimage.inference.networks import Networks
from arimage.inference.requests import (
    EngineImage,
    ImageCallback,
    ImageRequest,
    Preview,
    PreviewCallback,
    Progress,
    ProgressCallback,
)
from arimage.inference.settings import Settings
from decoder.diffusion_decoder import DecodeRequest, DecoderSettings, DiffusionDecoder, Reference
from decoder.glyph import quoted_texts
from decoder.sampler import KnownRegion, StepState
from tokenizer.image_size import PIXELS_PER_TOKEN, SizeLimits, reference_size
from tokenizer.pixels import picture as as_picture
from tokenizer.pixels import pixels

PREVIEW_STEPS = 6
SourceKey = tuple[int, tuple[int, int]]
Sources = dict[SourceKey, Reference]


@dataclass(frozen=True)
class Encoded:
    """A request as tokens and diffusion see it.

    Attributes:
        seed: of the picture.
        tokens: what is to be generated; None where there are codes.
        codes: that are given, or those of an enlarged draft.
        preview: the codes of the preview grid where they are given.
        glyphs, negative_glyphs: (L, E) embeddings of the prompt's quoted texts, and of the negative text.
        references: latents and codes of the pictures that the prompt refers to.
        known: latents of what is protected, and where.
        start_latents: (C, 4h, 4w) where ``strength`` below 1 starts from.
        strength: of this picture, where it is not that of the settings.
    """

    seed: int
    tokens: TokenRequest | None
    glyphs: Tensor
    negative_glyphs: Tensor
    codes: Tensor | None = None
    preview: Tensor | None = None
    references: tuple[Reference, ...] = ()
    known: KnownRegion | None = None
    start_latents: Tensor | None = None
    strength: float | None = None

    def to(self, device: torch.device | str) -> "Encoded":
        """With what is large on a device; on the CPU it can travel."""
        return replace(
            self,
            glyphs=self.glyphs.to(device),
            negative_glyphs=self.negative_glyphs.to(device),
            codes=None if self.codes is None else self.codes.to(device),
            preview=None if self.preview is None else self.preview.to(device),
            references=tuple(Reference(one.latents.to(device), one.codes.to(device)) for one in self.references),
            known=None
            if self.known is None
            else KnownRegion(self.known.latents.to(device), self.known.mask.to(device)),
            start_latents=None if self.start_latents is None else self.start_latents.to(device),
        )


@dataclass(frozen=True)
class _Work:
    """What the stages of one call share; ``estimates`` is how many clean estimates are shown."""

    requests: Sequence[ImageRequest]
    settings: Settings
    encoded: Sequence[Encoded]
    on_progress: ProgressCallback | None
    on_preview: PreviewCallback | None
    estimates: int | None


class Engine:
    """Makes pictures with a checkpoint's networks.

    Args:
        networks: loads what is needed.
        preview_every: diffusion steps between two previews of the clean estimate.
    """

    def __init__(self, networks: Networks, preview_every: int = 5) -> None:
        self.networks = networks
        checkpoint = networks.checkpoint
        self.config = checkpoint.config
        self.preview_every = preview_every
        self.vocabulary = checkpoint.vocabulary()

    @property
    def limits(self) -> SizeLimits:
        """Sizes at which the checkpoint's encoders see a reference."""
        return self.config.processor.limits

    def run(
        self,
        requests: Sequence[ImageRequest],
        settings: Settings,
        on_progress: ProgressCallback | None = None,
        on_preview: PreviewCallback | None = None,
        on_image: ImageCallback | None = None,
        estimates: int | None = None,
    ) -> list[EngineImage]:
        """Make the requested pictures, in order, and hand each to ``on_image`` as soon as it is finished.

        ``estimates`` is how many clean estimates ``on_preview`` is given of each picture, evenly spread; None gives one
        every ``preview_every`` steps. What a callback raises ends the call; nothing is left half done, and pictures
        that are through with diffusion are still handed over.
        """
        encoded = self.encode(requests, settings, on_progress)
        work = _Work(requests, settings, encoded, on_progress, on_preview, estimates)
        finished: list[EngineImage] = []

        def finish(image: EngineImage) -> None:
            finished.append(image)
            if on_image is not None:
                on_image(image)

        for group in _batches(range(len(requests)), TOKEN_BATCH):
            codes = self._generate_tokens(encoded, settings, group, on_progress)
            self._show_preview_grids(work, codes)
            # Each picture is rendered as soon as it is decoded, unless that means reading networks anew.
            for turn in _batches(group, len(group) if self.networks.placement == "sequential" else 1):
                latents: list[Tensor] = []
                complete = False
                try:
                    self._diffuse(work, turn, codes, latents)
                    complete = True
                finally:
                    if complete or on_image is not None:
                        self._render(work, turn[: len(latents)], codes, latents, finish)
        return finished

    def draw_tokens(
        self, requests: Sequence[ImageRequest], settings: Settings, on_progress: ProgressCallback | None = None
    ) -> list[ImageRequest]:
        """The requests with their codes, of which :meth:`run` makes the pictures that it makes without; where there is
        a draft, the codes are its, and where its picture is given, there is nothing to draw.

        So tokens of pictures that have little to do with each other are generated in one batch.
        """
        asked = [_draft_of(request) or request for request in requests]
        encoded = self.encode(asked, settings)
        codes: dict[int, list[Tensor]] = {}
        for group in _batches(range(len(asked)), TOKEN_BATCH):
            codes |= self._generate_tokens(encoded, settings, group, on_progress)
        drawn = [
            replace(one, codes=codes[i][-1], preview_codes=codes[i][0] if len(codes[i]) > 1 else None)
            for i, one in enumerate(asked)
        ]
        return [
            one if request.draft is None or request.codes is not None
            else replace(request, draft=one) if isinstance(request.draft, ImageRequest)
            else request
            for one, request in zip(drawn, requests)
        ]  # fmt: skip

    def with_draft(self, request: ImageRequest, settings: Settings) -> ImageRequest:
        """The request with a draft, where the settings ask for one at its size and its codes are still to be drawn.

        References are shown to a draft at its own scale.
        """
        given = (request.codes, request.fixed, request.preview_codes, request.layout, request.draft)
        if not settings.draft_side or any(one is not None for one in given):
            return request
        grid, side = target_grid(*request.size), max(1, settings.draft_side // PIXELS_PER_TOKEN)
        if grid.cells <= side * side:
            return request
        small = _pixels_of(grid_of_aspect(grid, side))
        references = tuple(self._at_most(picture, side) for picture in request.references)
        return replace(request, draft=replace(request, size=small, output_size=None, references=references))

    def _at_most(self, reference: Image.Image, side: int) -> Image.Image:
        """A reference in at most about ``side`` times ``side`` cells."""
        grid = target_grid(*self._source_key(reference)[1])
        return resized(reference, _pixels_of(grid_of_aspect(grid, side))) if grid.cells > side * side else reference

    def encode(
        self, requests: Sequence[ImageRequest], settings: Settings, on_progress: ProgressCallback | None = None
    ) -> list[Encoded]:
        """The first stage: layouts, drafts, references, canvases and glyph texts; each picture is encoded once a size.

        ``on_progress`` is told how drafts come along, which are whole pictures; what it raises ends the stage.
        """
        requests = self._encode_layouts(requests)
        drafts = self._drafts(requests, settings, on_progress)
        sources = self._encode_references(requests, drafts)
        glyphs, negative = self._encode_glyphs([request.prompt for request in requests], settings.negative_text)
        encoded = []
        for i, (request, glyph) in enumerate(zip(requests, glyphs)):
            canvas = None if request.canvas is None else sources[id(request.canvas), request.size]
            known = None
            if request.mask is not None and canvas is not None:
                keep = request.mask.protected_cells(*canvas.latents.shape[-2:])
                known = KnownRegion(canvas.latents, keep.to(canvas.latents))
            draft = sources[id(drafts[i]), request.size] if i in drafts else None
            start = draft if draft is not None else canvas if settings.decoder.strength < 1 else None
            codes = request.codes if draft is None else draft.codes
            encoded.append(
                Encoded(
                    request.seed,
                    self._token_request(request, settings, sources) if codes is None else None,
                    glyph,
                    negative,
                    codes,
                    preview=request.preview_codes,
                    references=tuple(sources[self._source_key(picture)] for picture in request.references),
                    known=known,
                    start_latents=None if start is None else start.latents,
                    strength=None if draft is None else settings.draft_strength,
                )
            )
        return encoded

    def _drafts(
        self, requests: Sequence[ImageRequest], settings: Settings, on_progress: ProgressCallback | None
    ) -> dict[int, Image.Image]:
        """The pictures of drafts, by the number of the request."""
        drafts = {i: draft for i, request in enumerate(requests) if (draft := _draft_of(request)) is not None}
        made = self.run(list(drafts.values()), settings, on_progress) if drafts else []
        given = {
            i: request.draft
            for i, request in enumerate(requests)
            if isinstance(request.draft, Image.Image) and request.codes is None
        }
        return given | dict(zip(drafts, (one.image for one in made)))

    def tokens(
        self,
        encoded: Sequence[Encoded],
        settings: Settings,
        on_progress: Callable[[TokenProgress], None] | None = None,
    ) -> list[list[Tensor]]:
        """The second stage: the code grids of each picture, the preview's first where it has one, in one batch."""
        batch = [one.tokens for one in encoded if one.tokens is not None]
        drawn: Iterator[list[Tensor]] = iter(())
        if batch:
            with self.networks.use("autoregressive") as model:
                drawn = iter(generate_grids(model, batch, settings.tokens, self.vocabulary.codebook_size, on_progress))
        grids = [next(drawn) if one.codes is None else [one.codes] for one in encoded]
        return [own if one.preview is None else [one.preview, *own] for own, one in zip(grids, encoded)]

    def diffuse(
        self,
        encoded: Encoded,
        codes: Tensor,
        settings: Settings,
        on_step: Callable[[StepState], None] | None = None,
    ) -> Tensor:
        """The third stage: the latents (C, 4h, 4w) of a picture of (h, w) codes."""
        encoded = encoded.to(self.networks.device)
        references = encoded.references
        if settings.align_references:
            references = tuple(aligned(one, codes) for one in references)
        with self.networks.use("transformer") as transformer:
            request = DecodeRequest(
                codes=codes,
                glyphs=encoded.glyphs,
                negative_glyphs=encoded.negative_glyphs,
                references=references,
                noise=self._noise(encoded.seed, tuple(codes.shape)),
                known=encoded.known,
                start_latents=encoded.start_latents,
            )
            decoder = DiffusionDecoder(transformer, self.config.scheduler)
            sampling = (
                settings.decoder if encoded.strength is None else replace(settings.decoder, strength=encoded.strength)
            )
            return decoder.sample([request], sampling, on_step)[0]

    def render(self, request: ImageRequest, latents: Tensor, feather: int = FEATHER) -> Image.Image:
        """The last stage: the picture, with what a mask protects, at its own size."""
        with self.networks.use("autoencoder") as autoencoder, torch.no_grad():
            image = as_picture(autoencoder.decode(latents[None].to(self.networks.device))[0])
        if request.mask is not None and request.canvas is not None:
            canvas = request.canvas.convert("RGB")
            image = request.mask.composite(canvas, resized(image, canvas.size[::-1]), feather)
        return image if request.output_size is None else resized(image, request.output_size)

    def _encode_layouts(self, requests: Sequence[ImageRequest]) -> Sequence[ImageRequest]:
        """The requests, those with a layout with the codes of their preview grids: as a model sees one in training."""
        sizes: dict[int, tuple[int, int]] = {}
        for i, request in enumerate(requests):
            if request.layout is not None and request.codes is None and request.preview_codes is None:
                grid = preview_grid(target_grid(*request.size))
                sizes[i] = _pixels_of(grid)
        if not sizes:
            return requests
        views = {
            (id(layout), size): resized(layout, size)
            for i, size in sizes.items()
            if (layout := requests[i].layout) is not None
        }
        with self.networks.use("semantic_tokenizer") as semantic_tokenizer:
            codes = dict(zip(views, semantic_tokenizer.encode(list(views.values()))))
        return [
            replace(request, preview_codes=codes[id(request.layout), sizes[i]]) if i in sizes else request
            for i, request in enumerate(requests)
        ]

    def _encode_references(
        self, requests: Sequence[ImageRequest], drafts: Mapping[int, Image.Image] | None = None
    ) -> Sources:
        """Codes and latents of every reference, canvas and draft, each picture once a size.

        Keyed by the picture's identity and its size in the networks.
        """
        pictures: dict[SourceKey, Image.Image] = {}
        for request in requests:
            for reference in request.references:
                pictures.setdefault(self._source_key(reference), reference)
            if request.canvas is not None:
                pictures.setdefault((id(request.canvas), request.size), request.canvas)
        for i, draft in (drafts or {}).items():
            pictures[id(draft), requests[i].size] = enlarged(draft, requests[i].size)
        if not pictures:
            return {}
        views = {key: resized(picture, key[1]) for key, picture in pictures.items()}
        with self.networks.use("semantic_tokenizer") as semantic_tokenizer:
            codes = dict(zip(views, semantic_tokenizer.encode(list(views.values()))))
        with self.networks.use("autoencoder") as autoencoder, torch.no_grad():
            return {
                key: Reference(autoencoder.encode(pixels(picture)[None].to(self.networks.device))[0], codes[key])
                for key, picture in views.items()
            }

    def reconstruct(self, picture: Image.Image) -> Image.Image:
        """A picture through the autoencoder and back, which is the best that diffusion can reach; sides of 32s."""
        with self.networks.use("autoencoder") as autoencoder, torch.no_grad():
            latents = autoencoder.encode(pixels(picture)[None].to(self.networks.device))
            return as_picture(autoencoder.decode(latents)[0])

    def _source_key(self, picture: Image.Image) -> SourceKey:
        width, height = picture.size
        return id(picture), reference_size(height, width, self.limits)

    def prompt(self, request: ImageRequest, references: Sequence[Tensor] = (), *, preview_grid: bool = True) -> Prompt:
        """The token prompt of a request whose references have these code grids."""
        preview = preview_grid and not references
        return build_prompt(
            self.vocabulary,
            request.prompt,
            target_grid(*request.size),
            references,
            preview=preview,
            preview_codes=request.preview_codes,
        )

    def _token_request(self, request: ImageRequest, settings: Settings, sources: Sources) -> TokenRequest:
        references = [sources[self._source_key(picture)].codes for picture in request.references]
        fixed = request.fixed
        if request.mask is not None and request.canvas is not None:
            known = sources[id(request.canvas), request.size].codes
            protected = request.mask.protected_cells(*target_grid(*request.size))
            fixed = torch.where(protected, known, UNCONSTRAINED if fixed is None else fixed)
        unconditional = None
        if settings.tokens.guidance != 1:
            without_text = replace(request, prompt="")
            unconditional = self.prompt(without_text, preview_grid=settings.preview_grid and not references)
        prompt = self.prompt(request, references, preview_grid=settings.preview_grid)
        return TokenRequest(prompt, stream(request.seed, "tokens"), fixed, unconditional)

    def _generate_tokens(
        self,
        encoded: Sequence[Encoded],
        settings: Settings,
        group: Sequence[int],
        on_progress: ProgressCallback | None,
    ) -> dict[int, list[Tensor]]:
        """The codes of each picture of a group, and before them those of its preview where it has one."""
        counts = {i: one.tokens.prompt.new_tokens for i, one in enumerate(encoded) if one.tokens is not None}
        before, total = sum(count for i, count in counts.items() if i < group[0]), sum(counts.values())

        def report(progress: TokenProgress) -> None:
            if on_progress is not None:
                on_progress(Progress("tokens", before + progress.done, total))

        return dict(zip(group, self.tokens([encoded[i] for i in group], settings, report)))

    def _show_preview_grids(self, work: "_Work", codes: dict[int, list[Tensor]]) -> None:
        """Render preview grids in a few unguided steps."""
        shown = {i: picture[0] for i, picture in codes.items() if len(picture) > 1}
        if not shown or work.on_preview is None:
            return
        glyphs, negative = self._encode_glyphs([work.requests[i].prompt for i in shown], "")
        with self.networks.use("transformer") as transformer:
            decoder = DiffusionDecoder(transformer, self.config.scheduler)
            for (i, preview), glyph in zip(shown.items(), glyphs):
                noise = self._noise(work.requests[i].seed, tuple(preview.shape))
                request = DecodeRequest(preview, glyph, negative, (), noise)
                latents = decoder.sample([request], DecoderSettings(steps=PREVIEW_STEPS, guidance=1.0))[0]
                with self.networks.use("autoencoder") as autoencoder:
                    work.on_preview(Preview(i, "grid", as_picture(autoencoder.decode(latents[None])[0])))

    def _encode_glyphs(self, prompts: Sequence[str], negative: str) -> tuple[list[Tensor], Tensor]:
        """The glyph embeddings of every prompt's quoted texts, (L, E) each, and those of the negative text."""
        texts = [quoted_texts(prompt) for prompt in prompts] + [[negative] if negative else []]
        with self.networks.use("glyph_encoder") as encoder, torch.no_grad():
            rows = []
            for text in texts:
                embeddings, mask = encoder.encode([text])
                rows.append(embeddings[0][mask[0]])
        return rows[:-1], rows[-1]

    def _diffuse(
        self, work: "_Work", pictures: Sequence[int], codes: dict[int, list[Tensor]], latents: list[Tensor]
    ) -> None:
        """Append the latents of each picture."""
        with self.networks.use("transformer"):  # held over the pictures, where networks are sequential
            for i in pictures:

                def on_step(state: StepState, picture: int = i) -> None:
                    if work.on_progress is not None:
                        total = state.steps * len(work.requests)
                        work.on_progress(Progress("diffusion", picture * state.steps + state.step + 1, total))
                    if work.on_preview is not None and self._is_shown(state, work.estimates):
                        work.on_preview(Preview(picture, "estimate", self._cheap_look(state.clean)))

                latents.append(self.diffuse(work.encoded[i], codes[i][-1], work.settings, on_step))

    def _is_shown(self, state: StepState, estimates: int | None) -> bool:
        """Whether a step's clean estimate is one of those that are shown; never the last one where they are counted."""
        if estimates is None:
            return (state.step + 1) % self.preview_every == 0
        shown = {round(state.steps * (number + 1) / (estimates + 1)) for number in range(estimates)}
        return state.step + 1 in shown - {state.steps}

    def _noise(self, seed: int, grid: tuple[int, ...]) -> Tensor:
        """Unit noise for a grid's latents, (C, 4h, 4w), the same on every device."""
        shape = (self.config.transformer.in_channels, 4 * grid[0], 4 * grid[1])
        generator = torch.Generator().manual_seed(stream(seed, "noise"))
        return torch.randn(shape, generator=generator).to(self.networks.device)

    def _cheap_look(self, clean: Tensor) -> Image.Image:
        """A clean estimate at half its size: a quarter of the autoencoder's work."""
        half = torch.nn.functional.avg_pool2d(clean[-1:].float(), 2)
        with self.networks.use("autoencoder") as autoencoder, torch.no_grad():
            return as_picture(autoencoder.decode(half)[0])

    def _render(
        self,
        work: "_Work",
        pictures: Sequence[int],
        codes: dict[int, list[Tensor]],
        latents: Sequence[Tensor],
        finish: ImageCallback,
    ) -> None:
        """Latents to pictures, each handed over when it is finished."""
        if not pictures:
            return
        with self.networks.use("autoencoder"):  # held over the pictures, where networks are sequential
            for i, latent in zip(pictures, latents):
                image = self.render(work.requests[i], latent, work.settings.feather)
                finish(EngineImage(image, codes[i][-1], codes[i][0] if len(codes[i]) > 1 else None))


def _draft_of(request: ImageRequest) -> ImageRequest | None:
    """The draft that is to be made of a request, with its seed."""
    if request.codes is not None or not isinstance(request.draft, ImageRequest):
        return None
    return replace(request.draft, seed=request.seed)


def _pixels_of(grid: Grid) -> tuple[int, int]:
    """(height, width) of a grid's picture."""
    return grid.height * PIXELS_PER_TOKEN, grid.width * PIXELS_PER_TOKEN


def stream(seed: int, purpose: str) -> int:
    """The seed of one of a picture's independent random streams."""
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=4).digest(), "big")


def _batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
