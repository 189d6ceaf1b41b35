"""What a command says while it works: notes, progress, results."""

import codecs
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from arimage.inference.pipeline import ImagePipeline
    from arimage.inference.requests import Progress
    from arimage.inference.rewriting import Rewriter
    from arimage.options import Task

STAGES = {"tokens": ("visual tokens", "tokens"), "diffusion": ("diffusion", "steps")}
SECONDS_BETWEEN_LINES = 5.0


def use_threads(threads: int | None) -> None:
    """Have PyTorch use so many CPU threads; None leaves it as it is."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


class Console:
    """Speaks on standard error, so that standard output stays for results."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def note(self, text: str) -> None:
        """One line that is worth knowing."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def load(
        self,
        model: "Path | None",
        *,
        lora: "Sequence[str] | None" = None,
        threads: int | None = None,
        **options: Any,
    ) -> "ImagePipeline":
        """Open a model by :func:`arimage.inference.api.load`, and say so where it was never trained and makes noise."""
        from arimage.inference.api import load

        use_threads(threads)
        pipeline = load(model, lora=lora or (), **options)
        if pipeline.checkpoint.is_random:
            self.note(
                f"note: {pipeline.checkpoint.name} was never trained: its pictures are noise, and their recipes say so"
            )
        return pipeline

    def rewritten(self, rewriter: "Rewriter | None", prompt: str, task: "Task") -> str:
        """A prompt as a language model rewrites it, or as it is; said either way. None leaves it."""
        if rewriter is None or not prompt:
            return prompt
        result = rewriter(prompt, task)
        self.note(f"note: {result.notice}" if result.notice else f"rewritten: {result.prompt}")
        return result.prompt

    def note_domain(self, pipeline: "ImagePipeline", prompts: list[str], *, editing: bool = False) -> None:
        """Say gently when a prompt is about something that a small model was not taught."""
        from arimage.checkpoints.domain import Domain

        domain = Domain.read(pipeline.checkpoint.path)
        if domain is not None:
            notes = [note for prompt in prompts for note in domain.notes(prompt, editing=editing)]
            for note in dict.fromkeys(notes):
                self.note(f"note: {note}")

    @contextmanager
    def progress(self) -> "Iterator[ProgressDisplay]":
        """A display for one call: bars on a terminal, plain lines elsewhere."""
        if self.quiet:
            yield ProgressDisplay()
        elif sys.stderr.isatty():
            with _bars() as display:
                yield display
        else:
            yield _Lines()


def rewriter_at(url: str | None, model: str) -> "Rewriter | None":
    """What rewrites prompts at an address, None where none is given."""
    if url is None:
        return None
    from arimage.inference.rewriting import Rewriter

    return Rewriter(url, model)


class ProgressDisplay:
    """Takes progress and shows nothing."""

    def __call__(self, progress: "Progress") -> None:
        return


class _Lines(ProgressDisplay):
    def __init__(self) -> None:
        self.stage = ""
        self.pace, self.spoke = _Pace(), 0.0

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        if progress.stage != self.stage:
            self.stage, self.spoke = progress.stage, now
            self.pace.start(progress.done)
        if progress.done < progress.total and now - self.spoke < SECONDS_BETWEEN_LINES:
            return
        self.spoke = now
        name, unit = STAGES[progress.stage]
        rate = self.pace.rate(progress.done)
        left = (progress.total - progress.done) / max(rate, 1e-6)
        line = f"{name}: {progress.done}/{progress.total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)


class _Pace:
    """Work a second since a stage began, or went on: the stages of a call take turns when it makes many pictures."""

    def start(self, done: int) -> None:
        """``done`` is what was just reported first."""
        self.before, self.started = max(done - 1, 0), time.monotonic()

    def rate(self, done: int) -> float:
        """Since then."""
        return (done - self.before) / max(time.monotonic() - self.started, 1e-3)


@contextmanager
def _bars() -> Iterator[ProgressDisplay]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
    )

    class Display(ProgressDisplay):
        def __init__(self) -> None:
            self.tasks: dict[str, Any] = {}
            self.pace, self.stage = _Pace(), ""

        def __call__(self, progress: "Progress") -> None:
            name, unit = STAGES[progress.stage]
            if progress.stage not in self.tasks or progress.done < bars.tasks[self.tasks[progress.stage]].completed:
                self.tasks[progress.stage] = bars.add_task(name, total=progress.total, rate="")
                self.stage = ""
            if progress.stage != self.stage:
                self.stage = progress.stage
                self.pace.start(progress.done)
            rate = f"{self.pace.rate(progress.done):.1f} {unit}/s"
            bars.update(self.tasks[progress.stage], completed=progress.done, rate=rate)

    with bars:
        yield Display()


def print_json(data: object) -> None:
    """Results for scripts; characters that standard output cannot hold are escaped."""
    text = json.dumps(data, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(data, indent=2)
    print(text)


def print_what_can_be_shown() -> None:
    """Have standard output take every text: bytes of file names as they are, ``?`` for what it cannot show.

    Standard error escapes such characters by itself.
    """
    codecs.register_error("arimage.shown", _shown)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="arimage.shown")


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("replace")(error)
