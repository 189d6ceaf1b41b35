"""Where pictures go: what was typed after ``-o``, names beside the inputs, and what is there already.

A *pattern* is a path in which ``{index}`` and ``{seed}`` stand for a picture's numbers, ``{{`` and ``}}`` for braces.
Only what was typed after ``-o`` is one; names of existing folders and of inputs enter it as they are.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from arimage.images.credentials import Credentials
    from arimage.inference.results import GeneratedImage

FIELD = re.compile(r"\{\{|\}\}|\{(?P<name>[^\W\d]\w*)(?P<format>[:!.\[][^{}]*)?\}")
RESULT = re.compile(r"(?P<origin>.+)-edited(-\d+)?", re.DOTALL)
LISTED = 5
SEEDS = 2**32


def literal(path: Path) -> Path:
    """The pattern of a path that is meant as it stands."""
    return Path(str(path).replace("{", "{{").replace("}", "}}"))


def typed(output: Path) -> Path:
    """The pattern that was typed after ``-o``; folders that exist already are meant as they stand.

    Raises:
        UsageError: there is an unknown placeholder in it.
    """
    if os.path.isdir(output):
        return literal(output)
    existing = next((parent for parent in output.parents if os.path.isdir(parent)), None)
    pattern = output if existing is None else literal(existing) / output.relative_to(existing)
    expand(pattern, 1, 0)
    return pattern


def expand(pattern: Path, index: int, seed: int) -> Path:
    """A path with {index} and {seed} filled in; they may have a format, as in {index:03}.

    Raises:
        UsageError: there is another placeholder in it, or a format that does not fit.
    """
    from arimage.errors import UsageError

    numbers = {"index": index, "seed": seed}

    def filled(match: re.Match[str]) -> str:
        name, text = match["name"], match[0]
        if name is None:
            return text[0]
        if name not in numbers:
            raise UsageError(
                f"the output pattern {str(pattern)!r} may use {{index}} and {{seed}} only, not {text}; for the braces "
                "themselves write {{ and }}"
            )
        try:
            return text.format(**numbers)
        except (ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise UsageError(f"the output pattern {str(pattern)!r}: {text} cannot be filled in ({error})") from None

    return Path(FIELD.sub(filled, str(pattern)))


def output_paths(pattern: Path, seeds: Sequence[int]) -> list[Path]:
    """One path a picture; numbers are added where the pattern names only one file."""
    paths = [expand(pattern, i, seed) for i, seed in enumerate(seeds, 1)]
    if len(set(paths)) < len(paths):
        paths = [path.with_name(f"{path.stem}-{i}{path.suffix}") for i, path in enumerate(paths, 1)]
    return paths


def sheet_path(pattern: Path, first: Path) -> Path:
    """Where the contact sheet of several pictures goes: beside the first, under the pattern's name."""
    stem = FIELD.sub(lambda match: "" if match["name"] else match[0][0], pattern.stem).rstrip("-_ ")
    return first.with_name(f"{stem or 'all'}-sheet.png")


def seeds_from(seed: int | None, count: int) -> list[int]:
    """The seeds of so many pictures, from the one that was given or from a drawn one on."""
    first = secrets.randbelow(SEEDS) if seed is None else seed
    return [first + i for i in range(count)]


def credentials_from(certificate: Path | None, key: Path | None) -> "Credentials | None":
    """What files are signed with, from ``--c2pa-cert`` and ``--c2pa-key``.

    Raises:
        UsageError: one of them is missing, or cannot be used.
    """
    if certificate is None and key is None:
        return None
    from arimage.errors import UsageError
    from arimage.images.credentials import Credentials

    if certificate is None or key is None:
        raise UsageError(f"{'--c2pa-key' if key is None else '--c2pa-cert'} is missing: signing needs both")
    return Credentials.read(certificate, key)


@dataclass(frozen=True)
class Job:
    """The edit of one input: ``seeds`` and ``paths`` of its results."""

    source: Path
    seeds: list[int]
    paths: list[Path]

    @property
    def done(self) -> bool:
        """Whether all results are there."""
        return all(path.exists() for path in self.paths)


def plan_edits(
    pictures: Sequence[Path], output: Path | None, count: int, seed: int | None, protected: bool
) -> list[Job]:
    """Where the results of edits go.

    A name that is taken is left alone, and ``-png`` or the like is added to ours: taken by an input, by the result of
    another one, and, beside the inputs, by any picture that is no result at all.

    Args:
        output: what was typed after ``-o``: a folder, or for one input a file. None puts results beside the inputs.
        count: results of each input.
        protected: a part of every input is kept bit for bit, so that no format is chosen that cannot.

    Raises:
        UsageError: -o does not fit, or a picture would be overwritten.
    """
    from arimage.errors import UsageError
    from arimage.images.writing import FORMATS, output_format

    if output is not None and not output.is_dir() and output.suffix:
        if len(pictures) == 1:
            output_format(output)
            seeds = seeds_from(seed, count)
            return [Job(pictures[0], seeds, output_paths(typed(output), seeds))]
        if output.suffix.lower() in FORMATS:
            raise UsageError(f"{len(pictures)} pictures need a folder for -o, not the file {output}")
    folder = None if output is None else typed(output)
    inputs = {picture.resolve() for picture in pictures}
    planned: set[Path] = set()
    jobs = []
    for picture in pictures:
        seeds = seeds_from(seed, count)
        for name in _names(picture, folder is None, protected):
            paths = output_paths((folder or literal(picture.parent)) / literal(Path(name)), seeds)
            if picture.resolve() in {path.resolve() for path in paths}:
                raise UsageError(f"{picture} would be overwritten; choose another folder with -o")
            if not any(path in planned or path.resolve() in inputs or _taken(path, picture, folder) for path in paths):
                break
        else:
            raise UsageError(f"every name for the result of {picture} is taken; choose another folder with -o")
        planned.update(paths)
        jobs.append(Job(picture, seeds, paths))
    return jobs


def _names(picture: Path, beside: bool, protected: bool) -> Iterator[str]:
    """Names for a picture's result, the plainest first."""
    from arimage.images.writing import FORMATS, keeps_pixels

    suffix = picture.suffix.lower()
    if suffix not in FORMATS or (protected and not keeps_pixels(picture, protected)):
        suffix = ".png"
    for stem in (picture.stem, picture.name.replace(".", "-")):
        yield f"{stem}{'-edited' if beside else ''}{suffix}"


def _taken(path: Path, source: Path, folder: Path | None) -> bool:
    """Whether a file is there that is not the result of this source.

    In a folder that was named for results a picture without recipe is taken for one.
    """
    from arimage.errors import ArimageError
    from arimage.images.provenance import is_edited, read_recipe

    if not path.is_file():
        return False
    try:
        recipe = read_recipe(path)
    except ArimageError:
        return folder is None
    if recipe is None:
        return folder is None and not is_edited(path)
    origin = recipe.references[0].file if recipe.references else None
    return recipe.task != "edit" or (origin is not None and origin.name != source.name)


def without_results(pictures: Sequence[Path]) -> list[Path]:
    """The pictures without those that an earlier run made of others among them.

    Such a result is called ``NAME-edited`` after one of them and carries our recipe or mark; another picture of that
    name is somebody's own.
    """
    from arimage.images.provenance import is_edited

    stems = {(picture.parent, stem) for picture in pictures for stem in (picture.stem, picture.name.replace(".", "-"))}

    def made(picture: Path) -> bool:
        match = RESULT.fullmatch(picture.stem)
        return match is not None and (picture.parent, match["origin"]) in stems and is_edited(picture)

    return [picture for picture in pictures if not made(picture)]


class Written:
    """The pictures that a command has written; it tells of them also when it is stopped.

    Args:
        total: how many there will be.
        recipe, ai_mark: what files carry.
        note: takes what should be known.
        credentials: what files are signed with.
    """

    def __init__(
        self,
        total: int,
        recipe: bool,
        ai_mark: bool,
        note: Callable[[str], None],
        credentials: "Credentials | None" = None,
    ) -> None:
        self.total, self.recipe, self.ai_mark, self.note, self.credentials = total, recipe, ai_mark, note, credentials
        self.images: list[GeneratedImage] = []
        self.paths: list[Path] = []
        self.sheet: Path | None = None

    def write(self, image: "GeneratedImage", path: Path) -> None:
        """Write a finished picture."""
        from arimage.images.writing import lossy_notice

        image.save(path, recipe=self.recipe, ai_mark=self.ai_mark, credentials=self.credentials)
        self.images.append(image)
        self.paths.append(path)
        if notice := lossy_notice(path, image.recipe.protects, image.deep is not None):
            self.note(f"note: {notice}")

    def write_sheet(self, path: Path, *, seeds: bool = False) -> None:
        """Write all of them in one picture, with their seeds below if wanted."""
        from arimage.images.sheets import contact_sheet
        from arimage.images.writing import save_picture

        pictures: list[Image.Image] = [image.image for image in self.images]
        labels = [str(image.recipe.seed) for image in self.images] if seeds else []
        self.sheet = save_picture(contact_sheet(pictures, labels=labels), path)

    @contextmanager
    def reported(self, as_json: bool) -> Iterator[None]:
        """Print on standard output what was written, at the end, however it comes; Ctrl-C says how far it came.

        Raises:
            Cancelled: in place of KeyboardInterrupt.
        """
        from arimage.errors import Cancelled

        try:
            yield
        except KeyboardInterrupt:
            names = ", ".join(map(str, self.paths[:LISTED])) + (", ..." if len(self.paths) > LISTED else "")
            raise Cancelled(
                f"interrupted: {len(self.paths)} of {self.total} pictures are written" + (f": {names}" if names else "")
            ) from None
        finally:
            self._report(as_json)

    def _report(self, as_json: bool) -> None:
        if as_json:
            from arimage.cli.console import print_json

            print_json(
                [
                    {"path": str(path), "recipe": image.recipe.model_dump(mode="json")}
                    for image, path in zip(self.images, self.paths)
                ]
            )
            return
        for path in [*self.paths, *([self.sheet] if self.sheet else [])]:
            print(path)
