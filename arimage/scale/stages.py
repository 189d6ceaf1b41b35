"""The stages of a picture, on plain data: what one gives, the next takes, in this process or another.

job ──► encode ──► tokens ──► diffusion ──► pixels ──► row of a picture that is written
        codes and   codes      latents      opens its pictures again, and writes the file
        latents of
        references
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

from arimage.errors import ArimageError, InputImageError
from arimage.scale.jobs import Job
from arimage.scale.shards import Row
from arimage.scale.stores import Store, StoreError, is_url, read_place
from arimage.scale.target import Place, write_picture

Stage = Literal["encode", "tokens", "diffusion", "pixels"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Work:
    """A job, the place of its picture, and the part that it belongs to."""

    job: Job
    place: Place
    part: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a job: the row of its picture, or why there is none."""

    work: Work
    row: Row | None = None
    problem: str = ""


class Stages(Protocol):
    """What makes pictures. What a method raises is the job's failure; a :class:`StoreError` ends the run."""

    def holding(self, stage: Stage) -> AbstractContextManager[Any]:
        """Have read what a stage needs, and keep it while the block lasts."""

    def encode(self, work: Work) -> Any: ...

    def tokens(self, encoded: Sequence[Any]) -> list[Any]:
        """What was drawn for each, in one batch."""

    def diffusion(self, encoded: Any, drawn: Any) -> Any: ...

    def pixels(self, work: Work, drawn: Any, latents: Any) -> Row: ...


@dataclass(frozen=True)
class Output:
    """How picture files are written, nowhere without a store; the others are of :meth:`GeneratedImage.to_bytes`."""

    store: Store | None
    kind: str = "png"
    recipe: bool = True
    ai_mark: bool = True


NETWORKS: Mapping[Stage, Sequence[str]] = {
    "encode": ("semantic_tokenizer", "autoencoder", "glyph_encoder"),
    "tokens": ("autoregressive",),
    "diffusion": ("transformer",),
    "pixels": ("autoencoder",),
}


@dataclass
class ModelStages:
    """The stages of a checkpoint.

    Args:
        output: where pictures go.
        model: arguments of :func:`arimage.load`.
        threads: of the CPU, which floating-point sums depend on; None leaves them as they are.
    """

    output: Output
    model: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    _pipeline: Any = None

    @property
    def pipeline(self) -> Any:
        """The model, opened once in each process."""
        if self._pipeline is None:
            import torch

            from arimage.inference.api import load

            if self.threads is not None and torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            self._pipeline = load(**self.model)
        return self._pipeline

    def use(self, pipeline: Any) -> None:
        """Take an opened model, in this process."""
        self._pipeline = pipeline

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}

    @contextmanager
    def holding(self, stage: Stage) -> Iterator[None]:
        networks = self.pipeline.networks
        with ExitStack() as held:
            for name in NETWORKS[stage]:
                held.enter_context(networks.use(name))
            if networks.placement == "resident":
                held.close()  # it keeps what was read, and other threads may want their turns
            yield

    def encode(self, work: Work) -> Any:
        call = self._call(work.job)
        encoded = self.pipeline.engine.encode(call.requests, call.settings)[0]
        return call.settings, encoded.to("cpu")

    def tokens(self, encoded: Sequence[Any]) -> list[Any]:
        """In one batch where tokens are drawn alike."""
        alike: dict[Any, list[int]] = {}
        for number, (settings, _) in enumerate(encoded):
            alike.setdefault(settings.tokens, []).append(number)
        drawn: dict[int, Any] = {}
        for numbers in alike.values():
            batch = [encoded[number][1].to(self.pipeline.networks.device) for number in numbers]
            drawn |= zip(numbers, self.pipeline.engine.tokens(batch, encoded[numbers[0]][0]))
        return [[codes.cpu() for codes in drawn[number]] for number in range(len(encoded))]

    def diffusion(self, encoded: Any, drawn: Any) -> Any:
        settings, one = encoded
        return self.pipeline.engine.diffuse(one, drawn[-1], settings).cpu()

    def pixels(self, work: Work, drawn: Any, latents: Any) -> Row:
        from arimage.inference.requests import EngineImage

        call = self._call(work.job)
        image = self.pipeline.engine.render(call.requests[0], latents, call.settings.feather)
        made = EngineImage(image, drawn[-1], drawn[0] if len(drawn) > 1 else None)
        result = self.pipeline.result(call, call.requests[0], made)
        output = self.output
        contents = result.to_bytes(output.kind, recipe=output.recipe, ai_mark=output.ai_mark)
        recipe = result.recipe.model_dump(mode="json")
        if output.store is None:
            return {"id": work.job.id, "job": work.job.identity}
        return write_picture(output.store, work.place, work.job, output.kind, contents, recipe)

    def _call(self, job: Job) -> Any:
        """The call of a job, with its pictures opened."""
        given = dict(job.arguments)
        options = given.pop("options", {})
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        sources, mask = list(given.pop("sources", ())), given.pop("mask", None)
        size = given.get("size")
        given |= {"size": tuple(size) if isinstance(size, list) else size, **options}
        if "outpaint" in given:
            given["outpaint"] = tuple(given["outpaint"])
        opened = [_opened(place) for place in sources]
        if job.task == "generate":
            call = self.pipeline.prepare_generation(references=opened, **given)
        else:
            call = self.pipeline.prepare_edit(opened, mask=None if mask is None else _opened(mask), **given)
        if not any(map(is_url, job.pictures)):
            return call
        extras = dict(call.extras)
        if mask is not None:
            extras["mask"] = _named(extras["mask"], mask)
        return replace(call, sources=tuple(map(_named, call.sources, sources)), extras=extras)


def _named(source: Any, place: str) -> Any:
    """A picture as a recipe names it, with its URL if it has one."""
    return source.model_copy(update={"path": place}) if is_url(place) else source


def _opened(place: str) -> Any:
    """A place as a call takes it: a path, or the contents of a URL."""
    if not is_url(place):
        return place.removeprefix("file://")
    try:
        return read_place(place)
    except FileNotFoundError:
        raise InputImageError(f"{place} does not exist") from None


def reason(error: Exception) -> str:
    """Why a job failed, in one line. What ends the whole run is raised again.

    Raises:
        StoreError: it is one.
    """
    if isinstance(error, StoreError):
        raise error
    if isinstance(error, ArimageError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
