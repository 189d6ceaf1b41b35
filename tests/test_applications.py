"""Inside an application: threads, forks, callbacks, and nothing of the process changed."""

import io
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import arimage
from arimage.cli.main import run as cli
from arimage.errors import Cancelled, ForkedError, InputImageError, UsageError
from arimage.files import write_whole
from arimage.images.opening import open_picture
from arimage.inference import networks
from arimage.inference.api import load
from arimage.inference.requests import EngineImage, ImageRequest
from tests.conftest import photo

FAST = {"steps": 1, "size": 64, "preview_grid": False}
THREADS = 4


def at_once(work, count=THREADS):
    """What ``work(i)`` gives in as many threads as there are numbers, started together."""
    barrier = threading.Barrier(count)

    def one(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def process_state():
    """What a library must leave as it is."""
    loggers = [logging.getLogger(name) for name in (None, "PIL", "torch", "transformers", "diffusers", "fontTools")]
    mask = os.umask(0o22)
    os.umask(mask)
    return {
        "warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "logging": [(logger.level, list(logger.handlers)) for logger in loggers] + [logging.root.manager.disable],
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.enabled, torch.are_deterministic_algorithms_enabled(),
        ),
        "random": (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
        "numpy": np.geterr(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "process": (mask, os.getcwd(), sys.stdout, sys.stderr, sys.excepthook, dict(os.environ)),
    }  # fmt: skip


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_nothing_of_the_process_changes_whatever_the_number_of_threads(pipeline, tmp_path):
    data, mask = encoded(photo(60, 50)), encoded(photo(60, 50, mode="L"))

    def work(number):
        for _ in range(25):
            open_picture(data)
        with pytest.raises(InputImageError):
            open_picture(data[: len(data) // 2])
        made = pipeline.edit(data, "blue", mask=mask, steps=1, seed=number)[0]
        made.save(tmp_path / f"{number}.png")
        pipeline.generate("x", seed=number, **FAST)

    work(0)  # libraries add filters for their own warnings when they are imported
    before = process_state()
    at_once(work)
    after = process_state()
    assert {name: value for name, value in after.items() if value != before[name]} == {}


def test_an_application_that_makes_errors_of_pillows_warnings_gets_ours():
    data = encoded(photo(60, 50), "TIFF")[:70]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputImageError, match="the picture is damaged"):
            open_picture(data)


def test_the_command_line_keeps_pillows_warnings_from_the_screen_and_puts_its_process_back(tmp_path, capsys, recwarn):
    (tmp_path / "x.tif").write_bytes(encoded(photo(60, 50), "TIFF")[:70])
    before = list(warnings.filters), logging.getLogger("fontTools").level
    with pytest.raises(SystemExit) as caught:
        cli(["edit", str(tmp_path / "x.tif"), "blue", "-o", str(tmp_path / "y.png"), "--quiet"])
    assert caught.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(recwarn)
    assert before == (list(warnings.filters), logging.getLogger("fontTools").level)


def test_written_files_have_the_rights_that_the_process_gives(tmp_path):
    old = os.umask(0o27)
    try:
        write_whole(tmp_path / "x", b"y")
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


def decoded(seed):
    """A request whose tokens are given."""
    return ImageRequest("a fox", (64, 64), seed, codes=torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.parametrize("placement", ["resident", "sequential"])
def test_threads_get_the_pictures_that_they_would_get_alone(placement, checkpoint_folder, pipeline):
    """Networks are read once, and none is taken away under a thread that uses it."""
    shared = load(checkpoint_folder, device="cpu", placement=placement)
    read = []
    plain = shared.networks._load
    shared.networks._load = lambda name: read.append(name) or plain(name)
    threads = THREADS if placement == "resident" else 2
    together = at_once(lambda number: shared.make([decoded(number)], steps=1)[0], threads)
    for number, made in enumerate(together):
        alone = pipeline.make([decoded(number)], steps=1)[0]
        assert np.array_equal(np.asarray(made.image), np.asarray(alone.image))
    if placement == "resident":
        assert len(read) == len(set(read))
    else:
        assert shared.networks._loaded == {}


def requests():
    """One whose tokens are given, and one whose tokens are to be generated, after a preview."""
    return [decoded(0), ImageRequest("a fox", (64, 64), 1)]


def test_make_tells_its_progress_shows_previews_and_stops(pipeline):
    progress, previews, images, cancel = [], [], [], threading.Event()
    options = {"on_progress": progress.append, "on_preview": previews.append, "on_image": images.append}
    made = pipeline.make(requests(), steps=5, cancel=cancel, **options)
    assert (progress[-1].stage, progress[-1].done, progress[-1].total) == ("diffusion", 10, 10)
    assert progress[0].stage == "tokens"
    assert {(preview.picture, preview.kind) for preview in previews} >= {(0, "estimate"), (1, "grid")}
    assert [image is other for image, other in zip(images, made)] == [True, True]
    assert isinstance(images[0], EngineImage)

    def stop(step):
        if step.stage == "diffusion":
            cancel.set()

    with pytest.raises(Cancelled, match="cancelled at diffusion 2 of 5"):
        pipeline.make(requests()[:1], steps=5, cancel=cancel, on_progress=stop)
    with pytest.raises(Cancelled, match="before it began"):
        pipeline.make(requests(), steps=5, cancel=cancel)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"on_progress": 3}, "on_progress must be a function, got int"), ({"cancel": True}, "cancel must be an event"),
     ({"on_preview": "show"}, "on_preview must be a function"), ({"cancle": None}, "did you mean 'cancel'")],
)  # fmt: skip
def test_wrong_callbacks_are_refused_by_name(pipeline, options, message):
    for call in (lambda: pipeline.make(requests()[:1], **options), lambda: pipeline.generate("x", **FAST, **options)):
        with pytest.raises(UsageError, match=message):
            call()


def in_a_child(work, seconds=60):
    """The exit status of a forked child that does some work, or None if it had to be killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process has threads
        child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    for _ in range(seconds * 20):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_says_so_where_it_would_hang(pipeline, checkpoint_folder):
    pipeline.generate("x", **FAST)
    threads = torch.get_num_threads()

    def refused():
        try:
            pipeline.generate("x", **FAST)
        except ForkedError as error:
            first = str(error)
        try:
            load(checkpoint_folder).generate("x", **FAST)
        except arimage.ArimageError as error:
            return 0 if "fork" in first and "\n" not in first and "fork" in str(error) else 1
        return 2

    def with_one_thread():
        torch.set_num_threads(1)
        return 0 if pipeline.generate("x", seed=1, **FAST) else 1

    torch.set_num_threads(2)
    pipeline.networks._loading.acquire()  # as a thread may hold it at the moment of the fork
    try:
        assert in_a_child(refused) == 0
        assert in_a_child(with_one_thread) == 0
    finally:
        pipeline.networks._loading.release()
        torch.set_num_threads(threads)


def test_loading_alone_runs_no_network(checkpoint_folder, monkeypatch):
    """So that a server may load before it forks, as with gunicorn's ``--preload``."""
    monkeypatch.setattr("arimage.inference.networks._ran_in", None)
    shared = load(checkpoint_folder, device="cpu")
    assert networks._ran_in is None
    with shared.networks.use("glyph_encoder"):
        assert networks._ran_in == os.getpid()
