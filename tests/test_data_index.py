"""The index and what reads by it: written once, resumed, brought up to date; every sample where it says."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arimage.cli.main import run
from arimage.data import indexing, storage
from arimage.data.folders import OwnData
from arimage.data.forms import parquet, tables
from arimage.data.order import EpochOrder, cut
from arimage.data.storage import ShardCache
from arimage.errors import DataError
from arimage.images.opening import open_picture, picture_size
from arimage.training.bad_samples import BadSamples
from arimage.training.batches import StepBatches, loader
from arimage.training.config import CaptionConfig, SourceConfig
from tests.tiny_data import FORMS, picture, rows_of, write, write_tar

ROOT = Path(__file__).parent.parent


def captions(data: OwnData) -> list[str]:
    return [next(iter(sample.read().captions.values())) for sample in data]


def batches_of(path: Path | str, size: int = 4, captions: CaptionConfig | None = None, **more: Any) -> StepBatches:
    places = {key: more.pop(key) for key in ("process", "processes") if key in more}
    source = SourceConfig(path=str(path), sides=(32,), **more)
    wanted = captions or CaptionConfig(dropout=0.0)
    return StepBatches([source], size, lambda found: {"seen": [one.caption for one in found]}, wanted, **places)


# Writing


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scanned: list[str] = []
    whole = indexing.scan_shard

    def counted(files: Any, shard: Any, verify: bool, part: Path) -> int:
        scanned.append(shard.path)
        return whole(files, shard, verify, part)

    monkeypatch.setattr(indexing, "scan_shard", counted)
    monkeypatch.setattr(indexing, "ALONE_FOR", 600.0)  # on a busy machine other processes would help
    return scanned


def test_indexing_that_is_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("tar", tmp_path / "set", rows_of(12), shards=4)
    scanned = count_scans(monkeypatch)

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OwnData(str(folder), processes=1, on_shard=stop)
    assert not (folder / indexing.NAME).exists()
    data = OwnData(str(folder), processes=1)
    assert scanned == ["00000.tar", "00003.tar", "00006.tar", "00009.tar"]
    assert captions(data) == [f"number {n}" for n in range(12)]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [indexing.NAME]


KILLED = """
import os, signal, sys
from arimage.data import indexing
whole = indexing.scan_shard
def scan(storage, shard, verify, part):
    if shard.path == "00006.tar":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(storage, shard, verify, part)
indexing.scan_shard = scan
indexing.build_index(sys.argv[1], processes=1)
"""


def test_indexing_that_is_killed_leaves_nothing_twice_and_nothing_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("tar", tmp_path / "set", rows_of(12), shards=4)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    scanned = count_scans(monkeypatch)
    assert captions(OwnData(str(folder))) == [f"number {n}" for n in range(12)]
    assert scanned == ["00006.tar", "00009.tar"]


def test_only_shards_that_are_new_or_changed_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("tar", tmp_path / "set", rows_of(9), shards=3)
    scanned = count_scans(monkeypatch)
    OwnData(str(folder))
    write_tar(folder / "00001.tar", rows_of(2, 20), 20)
    write_tar(folder / "00006.tar", rows_of(1, 30), 30)
    (folder / "00003.tar").unlink()
    scanned.clear()
    data = OwnData(str(folder))
    assert scanned == ["00001.tar", "00006.tar"]
    assert captions(data) == [f"number {n}" for n in (0, 1, 2, 20, 21, 30)]
    assert [Path(sample.name).name for sample in data][3:] == ["00001.tar:00020", "00001.tar:00021", "00006.tar:00030"]
    scanned.clear()
    assert captions(OwnData(str(folder))) == captions(data)
    assert scanned == []
    assert len(data.verified()) == 6
    assert len(scanned) == 3


@pytest.mark.parametrize("form", FORMS)
def test_processes_find_what_one_finds(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form once goes through the lines of JSON that other processes are sent."""
    folder = write(form, tmp_path / "set", rows_of(9))
    alone = OwnData(str(folder), tmp_path / "alone.parquet", processes=1)
    lines, answers = [], io.StringIO()
    place, only = indexing.open_place(str(folder))
    for number, shard in enumerate(indexing.find_shards(place, only)):
        part = str(tmp_path / f"{number}.parquet")
        lines.append(
            {"url": place.url, "verify": False, "part": part, "shard": {**shard.as_json(), "names": shard.names}}
        )
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, lines))))
    monkeypatch.setattr("sys.stdout", answers)
    indexing.main()
    assert [json.loads(line)["rows"] for line in answers.getvalue().splitlines()] == alone.entries.rows
    assert sum(alone.entries.rows) == 9


def test_a_large_table_is_looked_through_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("table", tmp_path / "set", rows_of(9))
    text = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join([*text[:4], "", *text[4:]]))
    whole = OwnData(str(folder), tmp_path / "whole.parquet")
    for size in (31, len(text[0]) + 1):
        monkeypatch.setattr(tables, "PART", size)
        parts = OwnData(str(folder), tmp_path / f"{size}.parquet", processes=1)
        assert len(parts.entries.shards) > 3
        assert [sample.name for sample in parts] == [sample.name for sample in whole]
        assert captions(parts) == captions(whole)


def test_the_index_lies_in_the_cache_where_the_data_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARIMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(indexing, "_writable", lambda folder: "cache" in str(folder))
    data = OwnData(str(write("tar", tmp_path / "set", rows_of(3))))
    assert data.entries.file.parent == tmp_path / "cache" / "indexes"
    assert len(captions(data)) == 3


def test_a_shard_that_cannot_be_opened_is_one_bad_sample(tmp_path: Path) -> None:
    folder = write("tar", tmp_path / "set", rows_of(6), shards=3)
    (folder / "00002.tar").write_bytes(b"x" * 600)
    batches = batches_of(folder)
    ((name, reason),) = [(bad.name, bad.reason) for bad in batches.unreadable]
    assert name == f"{folder}/00002.tar"
    assert reason.startswith(f"{name}: is no readable tar")
    assert {text for step in range(4) for text in batches[step].tensors["seen"]} == {
        f"number {n}" for n in (0, 1, 4, 5)
    }


def test_an_index_of_another_release_is_made_anew(tmp_path: Path) -> None:
    folder = write("tar", tmp_path / "set", rows_of(3))
    (folder / indexing.NAME).write_bytes(b"no parquet")
    assert len(OwnData(str(folder))) == 3


def test_the_command_names_the_index_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(4)
    rows[2]["image"] = b"no picture"
    folder = write("tar", tmp_path / "set", rows)
    with pytest.raises(SystemExit) as caught:
        run(["data", "index", str(folder), "--index", str(tmp_path / "index.parquet"), "--verify"])
    assert not caught.value.code
    out = capsys.readouterr().out
    assert f"{tmp_path}/index.parquet: 4 samples in 2 shards, 1 cannot be used" in out
    assert f"problem: {folder}/00002.tar:00002: the picture is not a picture" in out
    assert not (folder / indexing.NAME).exists()


# Headers


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_header_says_the_upright_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (640, 320)).save(buffer, "JPEG", exif=exif)
    size = picture_size(io.BytesIO(buffer.getvalue()[:-200]))
    assert size == open_picture(buffer.getvalue()).rgb.size


def test_a_large_jpeg_is_decoded_no_larger_than_it_must() -> None:
    buffer = io.BytesIO()
    ramp = np.linspace(0, 255, 640 * 480 * 3).reshape(480, 640, 3).astype(np.uint8)
    Image.fromarray(ramp).save(buffer, "JPEG", quality=95)
    small = open_picture(buffer.getvalue(), least=(100, 70)).rgb
    assert small.size == (160, 120)
    whole = open_picture(buffer.getvalue()).rgb.resize(small.size, Image.Resampling.BOX)
    assert abs(np.asarray(small).astype(int) - np.asarray(whole)).mean() < 3


# Reading


def test_a_tar_is_read_without_its_headers_and_a_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = OwnData(str(write("tar", tmp_path / "tar", rows_of(6))))
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("the tar is scanned again"))
    assert captions(packed) == [f"number {n}" for n in range(6)]
    batches = batches_of(write("parquet", tmp_path / "parquet", rows_of(24)), 3)
    reader = parquet.reader(batches.sources[0].data.storage)  # type: ignore[attr-defined]
    batches.sources[0].data._readers["parquet"] = reader  # type: ignore[attr-defined]
    seen = [text for step in range(9) for text in batches[step].tensors["seen"]]
    assert set(seen) == {f"number {n}" for n in range(24)}
    assert len(reader.kept) == 6


@pytest.mark.parametrize("form", FORMS)
def test_a_stop_goes_on_exactly_with_other_workers_and_processes(form: str, tmp_path: Path) -> None:
    folder = write(form, tmp_path / "set", rows_of(22))
    whole = batches_of(folder, 4)
    wanted = [whole[step].tensors["seen"] for step in range(14)]
    assert {text for seen in wanted[:8] for text in seen} == {f"number {n}" for n in range(22)}
    assert wanted[:7] != wanted[7:]
    for workers in (0, 2):
        assert [one.tensors["seen"] for one in loader(batches_of(folder, 4), 5, 9, workers)] == wanted[5:9]
    halves = [batches_of(folder, 2, process=index, processes=2) for index in range(2)]
    for step in (5, 3, 11):
        assert [text for half in halves for text in half[step].tensors["seen"]] == wanted[step]


# Remote


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Tars in memory, on a server that can be told to fail."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Flaky(MemoryFileSystem):
        protocol = "flaky"
        cachable = False
        store: dict[str, Any] = {}  # noqa: RUF012
        pseudo_dirs = [""]  # noqa: RUF012
        failures = 0
        asked: Counter[str] = Counter()  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(MemoryFileSystem._strip_protocol(path.removeprefix("flaky:/")))

        def _answer(self, kind: str) -> None:
            Flaky.asked[kind] += 1
            if Flaky.failures:
                Flaky.failures -= 1
                raise RuntimeError("503 Service Unavailable")

        def cat_file(self, *arguments: Any, **named: Any) -> Any:
            self._answer("range")
            return super().cat_file(*arguments, **named)

        def get_file(self, *arguments: Any, **named: Any) -> Any:
            self._answer("copy")
            return super().get_file(*arguments, **named)

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setenv("ARIMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(indexing, "ALONE_FOR", 600.0)  # other processes do not know this server
    for path in sorted(write("tar", tmp_path / "set", rows_of(12), shards=4).glob("*.tar")):
        Flaky().pipe_file(f"/bucket/{path.name}", path.read_bytes())
    return "flaky://bucket", Flaky


def test_a_server_that_is_busy_for_a_while_is_asked_again(
    remote: tuple[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    url, server = remote
    batches = batches_of(url)
    server.failures = 3
    assert {text for step in range(6) for text in batches[step].tensors["seen"]} == {f"number {n}" for n in range(12)}
    said = capsys.readouterr().err
    assert said.count("503 Service Unavailable; trying again in") == 3
    assert "/bucket/0000" in said


def test_a_server_that_does_not_come_back_costs_its_samples_and_no_more(
    remote: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, server = remote
    monkeypatch.setattr(storage, "TRIES", 2)
    batches = batches_of(url)
    del server.store["/bucket/00003.tar"]
    found = BadSamples(None, 0.1, batches.sizes)
    seen = Counter(text for step in range(6) for text in seen_and_bad(batches, step, found))
    assert set(seen) == {f"number {n}" for n in range(12) if n not in (3, 4, 5)}
    assert {name for _, name in found.found} == {f"/bucket/00003.tar:{n:05d}" for n in (3, 4, 5)}
    assert "3 of the 12 samples" in str(found.excess())


def seen_and_bad(batches: StepBatches, step: int, found: BadSamples) -> list[str]:
    batch = batches[step]
    found.add(batch.bad)
    seen: list[str] = batch.tensors["seen"]
    return seen


def test_an_index_is_not_made_of_a_server_that_fails(remote: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    url, server = remote
    monkeypatch.setattr(storage, "TRIES", 2)

    server.failures = 2
    with pytest.raises(DataError, match=r"/bucket/00000\.tar cannot be reached after 2 tries: .*503"):
        OwnData(url, processes=1)


def test_a_folder_on_a_server_is_indexed_as_on_a_disk(remote: tuple[str, Any], tmp_path: Path) -> None:
    _, server = remote
    local = write("pictures", tmp_path / "photos", rows_of(20))
    for path in local.iterdir():
        server().pipe_file(f"/photos/{path.name}", path.read_bytes())
    data = OwnData("flaky://photos")
    assert captions(data) == captions(OwnData(str(local))) == [f"number {n}" for n in range(20)]


def test_copies_of_remote_shards_are_bounded_and_read_once(remote: tuple[str, Any], tmp_path: Path) -> None:
    url, server = remote
    size = server().info("/bucket/00000.tar")["size"]
    copies = tmp_path / "copies"
    data = OwnData(url, cache=ShardCache(copies, 2 * size + 1))
    server.asked.clear()
    assert captions(data) == [f"number {n}" for n in range(12)]
    assert server.asked == {"copy": 4}
    assert len(list(copies.glob("*.shard"))) == 2
    assert captions(data)[9:] == ["number 9", "number 10", "number 11"]
    assert server.asked["range"] == 0
    too_large = OwnData(url, cache=ShardCache(copies, size - 1))
    assert captions(too_large) == captions(data)
    assert server.asked["range"] == 12


# The order of an epoch


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=80).filter(lambda kinds: set(kinds) != {255}),
    st.integers(1, 7), st.integers(1, 9), st.integers(1, 30), st.integers(1, 3),
)  # fmt: skip
def test_an_epoch_holds_every_sample_in_batches_of_one_kind(
    kinds: list[int], size: int, block: int, window: int, open_shards: int
) -> None:
    blocks = cut(len(kinds), block)
    shards = cut(len(blocks), 2)

    def order() -> EpochOrder:
        return EpochOrder(
            np.array(kinds, np.uint8), blocks, size, 3, shards=shards, window=window, open_shards=open_shards
        )

    whole = order()
    batches = [whole.batch(draw).tolist() for draw in range(2 * whole.batches_per_epoch)]
    wanted = Counter(number for number, kind in enumerate(kinds) if kind != 255)
    for epoch in (batches[: len(batches) // 2], batches[len(batches) // 2 :]):
        seen = Counter(number for batch in epoch for number in batch)
        assert seen.keys() == wanted.keys()
        assert sum(seen.values()) - len(wanted) <= 3 * (size - 1)
        assert all(len({kinds[number] for number in batch}) == 1 and len(batch) == size for batch in epoch)
    again = order()
    assert [again.batch(draw).tolist() for draw in reversed(range(len(batches)))] == batches[::-1]


def test_few_shards_are_in_use_at_a_time_and_batches_are_mixed() -> None:
    count, block, window = 40_000, 100, 2000
    order = EpochOrder(np.zeros(count, np.uint8), cut(count, block), 50, shards=[10] * 40, window=window, open_shards=4)
    for start in range(0, 200, 40):
        rows = np.concatenate([order.batch(draw) for draw in range(start, start + 40)])
        assert len(set(rows // block)) == window // block
        assert len(set(rows // 1000)) <= 4
    mixed = [len(set(order.batch(draw) // block)) for draw in range(40)]
    assert min(mixed) > 10


def test_a_sample_is_replaced_by_others_of_its_kind() -> None:
    kinds = np.array([0, 1] * 50, np.uint8)
    order = EpochOrder(kinds, cut(100, 10), 4)
    others = [order.another(7, attempt) for attempt in range(8)]
    assert others[0] == 7
    assert len(set(others)) == 8
    assert {int(kinds[one]) for one in others} == {1}


# Mixtures


def test_filters_leave_samples_out_and_their_captions_unread(tmp_path: Path) -> None:
    texts = [["a red fox", "一只红狐狸"], ["狐狸"], ["fox"], ["a very long text about a fox"], ["two foxes"], ["x fox"]]
    rows = rows_of(6, caption=texts, rating=[3, 5, 1, 3, 4, 2])
    rows[4]["image"] = picture(4, (20, 90))
    folder = write("tar", tmp_path / "set", rows)

    def seen(**filters: Any) -> set[str]:
        batches = batches_of(folder, 2, **filters)
        return {text for step in range(18) for text in batches[step].tensors["seen"]}

    everything = {text for kinds in texts for text in kinds}
    assert seen() == everything
    assert seen(languages=["en"]) == everything - {"一只红狐狸", "狐狸"}
    assert seen(caption_characters=(5, 12)) == {"a red fox", "一只红狐狸", "two foxes", "x fox"}
    assert seen(minimum_rating=3, maximum_aspect=2) == {"a red fox", "一只红狐狸", "狐狸", texts[3][0]}
    assert "two foxes" not in seen(minimum_side=21)
    with pytest.raises(DataError, match=r"no sample that can be used \(.*shorter side >= 500"):
        batches_of(folder, minimum_side=500)


def test_rare_categories_come_as_often_as_the_largest_up_to_a_cap(tmp_path: Path) -> None:
    kinds = ["cat"] * 16 + ["dog"] * 4 + [None]
    folder = write("tar", tmp_path / "set", rows_of(21, category=kinds))

    def epoch(**more: Any) -> Counter[Any]:
        batches = batches_of(folder, 1, **more)
        steps = batches.sources[0].order.batches_per_epoch  # type: ignore[attr-defined]
        numbers = [int(batches[step].tensors["seen"][0].split()[1]) for step in range(steps)]
        assert set(numbers) == set(range(21))
        return Counter(kinds[number] for number in numbers)

    assert epoch() == {"cat": 16, "dog": 4, None: 1}
    assert epoch(balance=1.0, max_repeats=20) == {"cat": 16, "dog": 16, None: 16}
    assert epoch(balance=1.0, max_repeats=3) == {"cat": 16, "dog": 12, None: 3}
    assert 6 <= epoch(balance=0.5)["dog"] <= 10


def test_of_pictures_that_look_the_same_one_is_used(tmp_path: Path) -> None:
    rows = rows_of(5)
    rows[3]["image"], rows[4]["image"] = rows[0]["image"], picture(1, (64, 96))
    folder = write("tar", tmp_path / "set", rows)
    with pytest.raises(DataError, match=r"drop_duplicates needs decoded pixels: run arimage data index .* --verify"):
        batches_of(folder, drop_duplicates=True)
    OwnData(str(folder), verify=True)
    batches = batches_of(folder, 1, drop_duplicates=True)
    assert {text for step in range(9) for text in batches[step].tensors["seen"]} == {"number 0", "number 1", "number 2"}


def test_kinds_of_captions_have_their_shares(tmp_path: Path) -> None:
    texts = ["a fox", "a fox that runs " * 10, "狐狸"]
    folder = write("tar", tmp_path / "set", rows_of(1, caption=[texts]))

    def share(**kinds: float) -> list[float]:
        batches = batches_of(folder, 1, CaptionConfig(dropout=0.0, kinds=kinds))
        seen = Counter(batches[step].tensors["seen"][0].strip() for step in range(80))
        return [seen[text.strip()] / 80 for text in texts]

    assert share(zh=0.5, long=0.5) == pytest.approx([0, 0.5, 0.5], abs=0.2)
    assert share(en=1.0)[2] == 0
    assert share(short=0.8, long=0.2) == pytest.approx([4 / 9, 1 / 9, 4 / 9], abs=0.2)


def test_weights_change_with_the_step_and_epochs_end(tmp_path: Path) -> None:
    small = write("tar", tmp_path / "small", rows_of(4, 100))
    large = write("tar", tmp_path / "large", rows_of(30))
    sources = [
        SourceConfig(path=str(small), sides=(32,), weight={3: 1.0}, epochs=2),
        SourceConfig(path=str(large), sides=(32,), weight={0: 1.0, 3: 0.0, 6: 1e-9}, epochs=1),
    ]
    make: Callable[[], StepBatches] = lambda: StepBatches(  # noqa: E731
        sources, 2, lambda found: {}, CaptionConfig(), accumulation=2
    )
    turns = [make().turn(step)[0] for step in range(12)]
    assert turns[:6] == [1] * 6
    assert turns[6:12] == [0] * 6
    with pytest.raises(DataError, match=r"used up after \d+ steps: every source has had its epochs"):
        make().turn(100)


def test_data_that_has_changed_is_told_from_data_that_has_not(tmp_path: Path) -> None:
    folder = write("tar", tmp_path / "set", rows_of(9, rating=[3, 3, 3, 3, 3, 3, 3, 3, 1]))
    first = batches_of(folder).digests()
    assert first.keys() == {str(folder)}
    assert batches_of(folder).digests() == first
    assert batches_of(folder, minimum_rating=2).digests() != first
    write_tar(folder / "00003.tar", rows_of(2))
    assert batches_of(folder).digests() != first


def test_memory_of_the_turns_is_a_few_bytes_a_step(tmp_path: Path) -> None:
    batches = batches_of(write("tar", tmp_path / "set", rows_of(3)), 2)
    batches.turn(29_999)
    assert batches._order.itemsize * len(batches._order) + batches._draws.itemsize * len(batches._draws) <= 300_000


class BusyServer(ThreadingHTTPServer):
    """A folder by HTTP, with ranges; as many of the next requests for contents as ``failures`` says get a 503."""

    failures = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(RangeHandler, directory=str(folder)))
        self.ranges = self.whole = 0
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is nothing to tell."""


class RangeHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BusyServer

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().do_GET()
        if self.server.failures:
            self.server.failures -= 1
            return self.send_error(503)
        asked = self.headers.get("Range")
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        content = path.read_bytes()
        part = content[int(first) : int(last or len(content)) + 1]
        self.server.ranges += bool(asked)
        self.server.whole += not asked
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("copies", [False, True])
def test_a_web_server_is_read_in_ranges_or_by_copies(
    copies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARIMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    folder = write("tar", tmp_path / "set", rows_of(12), shards=4)
    server = BusyServer(folder)
    try:
        here = batches_of(server.url, **({"shard_cache": str(tmp_path / "copies")} if copies else {}))
        there = batches_of(folder)
        server.ranges = server.whole = 0
        server.failures = 2
        for step in range(6):
            assert here[step].tensors["seen"] == there[step].tensors["seen"]
            assert not here[step].bad
        assert (server.whole, server.ranges > 0) == ((4, False) if copies else (0, True))
        assert capsys.readouterr().err.count("trying again in") == 2
    finally:
        server.shutdown()
        server.server_close()
