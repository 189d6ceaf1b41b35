"""A run over a table of jobs makes exactly what is missing, whatever happened before."""

import contextlib
import csv
import errno
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from arimage.errors import ArimageError, Cancelled, UsageError
from arimage.scale import jobs, stores
from arimage.scale.batch import Batch
from arimage.scale.jobs import Basis, Table
from arimage.scale.local import run_here
from arimage.scale.progress import Progress, duration
from arimage.scale.stages import Output
from arimage.scale.stores import Store, StoreError
from arimage.scale.stub import StubStages
from arimage.scale.target import Target
from tests.stub_run import SIZES

BASIS = Basis("w")


def table(path: Path, rows: list, basis: Basis = BASIS) -> Table:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows), encoding="utf-8")
    return Table(str(path), basis)


def run(jobs: Table, target: Target, shard: int = 4, share: float = 0.5, stop_after: int | None = None, **stub):
    """A run in this process; ``stop_after`` so many pictures it is interrupted."""
    progress = Progress(jobs.count)
    stages = StubStages(Output(target.store), sizes=SIZES, **stub)
    made = []

    def execute(works):
        for outcome in run_here(stages, works, progress, batch=3):
            if outcome.row is not None:
                made.append(outcome.work.job.id)
            yield outcome
            if stop_after is not None and len(made) >= stop_after:
                raise KeyboardInterrupt

    summary = None
    try:
        summary = Batch(jobs, target, progress, shard, share).run(execute)
    except Cancelled:
        assert stop_after is not None
    return summary, made


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a target that is not about its making."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".arimage" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def target_of(place, form="pictures", patience=0.0) -> Target:
    return Target(Store(str(place), patience), form)


ROWS = [{"prompt": f"fox {i}", "seed": i} for i in range(10)]


@pytest.mark.parametrize("form", ["pictures", "webdataset", "parquet"])
@pytest.mark.parametrize("stops", [[2, 5], [4, 4]])
def test_a_stopped_run_goes_on_and_makes_nothing_twice(tmp_path, form, stops):
    jobs = table(tmp_path / "jobs.jsonl", ROWS)
    whole, _ = run(jobs, target_of(tmp_path / "whole", form))
    assert (whole.made, whole.there, whole.failed, whole.listed) == (10, 0, 0, 10)
    for stop in stops:
        assert run(jobs, target_of(tmp_path / "parts", form), stop_after=stop)[0] is None
        assert not (tmp_path / "parts" / "manifest.jsonl").exists()
    summary, rest = run(jobs, target_of(tmp_path / "parts", form))
    assert summary.made == len(rest)
    assert summary.made + summary.there == 10
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert not list((tmp_path / "parts").rglob("*.part"))
    if form != "pictures":
        assert not list((tmp_path / "parts" / ".arimage" / "staging").iterdir())
    again, nothing = run(jobs, target_of(tmp_path / "parts", form))
    assert (again.made, again.there, again.listed, nothing) == (0, 10, 10, [])


def test_no_picture_is_made_a_second_time_after_it_was_written(tmp_path):
    jobs, made = table(tmp_path / "jobs.jsonl", ROWS), []
    for stop in (1, 3, 2, 1):
        made += run(jobs, target_of(tmp_path / "out", "webdataset"), stop_after=stop)[1]
    made += run(jobs, target_of(tmp_path / "out", "webdataset"))[1]
    assert len(made) == len(set(made)) == 10


def test_shards_hold_pictures_prompts_and_recipes(tmp_path):
    jobs = table(tmp_path / "jobs.jsonl", [{"id": "a b", "prompt": "x"}, {"id": "c", "prompt": "y"}])
    run(jobs, target_of(tmp_path / "tars", "webdataset"))
    (shard,) = (tmp_path / "tars").glob("*.tar")
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        row = json.loads(tar.extractfile("c.json").read())
    assert names == ["a b.png", "a b.txt", "a b.json", "c.png", "c.txt", "c.json"]
    assert (row["recipe"]["prompt"], row["file"], row["name"]) == ("y", shard.name, "c.png")
    run(jobs, target_of(tmp_path / "parquet", "parquet"))
    (shard,) = (tmp_path / "parquet").glob("*.parquet")
    columns = pyarrow.parquet.read_table(shard).to_pydict()
    assert (columns["id"], columns["prompt"]) == (["a b", "c"], ["x", "y"])
    assert columns["image"][0]["path"] == "a b.png"


def test_added_rows_are_made_and_the_others_are_kept(tmp_path):
    run(table(tmp_path / "jobs.jsonl", ROWS), target_of(tmp_path / "out", "webdataset"))
    before = contents(tmp_path / "out")
    longer = table(tmp_path / "jobs.jsonl", [{"prompt": "first", "seed": 1}, *ROWS, {"prompt": "last"}])
    summary, made = run(longer, target_of(tmp_path / "out", "webdataset"))
    assert (summary.made, summary.there, summary.listed, len(made)) == (2, 10, 12, 2)
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before if name != "manifest.jsonl"} == {
        name: data for name, data in before.items() if name != "manifest.jsonl"
    }
    listed = [json.loads(line) for line in after["manifest.jsonl"].splitlines()]
    assert sorted(row["row"] for row in listed) == list(range(1, 13))


def test_what_killed_runs_left_half_written_goes(tmp_path):
    out = tmp_path / "out"
    for folder in (out, out / "00000"):
        folder.mkdir()
        for name, hours in ((".old.part", 2), (".new.part", 0)):
            (folder / name).write_bytes(b"half")
            os.utime(folder / name, (time.time() - 3600 * hours,) * 2)
    run(table(tmp_path / "jobs.jsonl", ROWS[:2]), target_of(out))
    assert sorted(path.name for path in out.rglob("*.part")) == [".new.part"] * 2


def test_a_target_has_one_form(tmp_path):
    jobs = table(tmp_path / "jobs.jsonl", ROWS)
    run(jobs, target_of(tmp_path / "out", "webdataset"))
    with pytest.raises(UsageError, match="holds webdataset, not pictures: choose another target, or --form webdataset"):
        run(jobs, target_of(tmp_path / "out"))


def test_two_runs_at_once_leave_what_one_would(tmp_path):
    """The second begins and ends while the first is on its way."""
    jobs = table(tmp_path / "jobs.jsonl", ROWS)
    for form in ("pictures", "webdataset"):
        alone, out = tmp_path / f"alone-{form}", tmp_path / f"out-{form}"
        run(jobs, target_of(alone, form))
        progress = Progress(jobs.count)

        def execute(works, progress=progress, out=out, form=form):
            stages = StubStages(Output(Store(str(out))), sizes=SIZES)
            for number, outcome in enumerate(run_here(stages, works, progress, batch=3)):
                if number == 2:
                    run(jobs, target_of(out, form))
                yield outcome

        summary = Batch(jobs, target_of(out, form), progress, 4, 0.0).run(execute)
        assert (summary.listed, summary.failed) == (10, 0)
        assert contents(out) == contents(alone)


def test_a_bad_job_is_told_and_does_not_stop_the_others(tmp_path):
    rows = [
        {"prompt": "good"}, {"prompt": "x", "references": ["missing.png"]}, {"promt": "x"}, {"prompt": "bad one"},
        "no json", {"prompt": "x", "steps": 0}, {"id": "../x", "prompt": "x"}, {"id": "n", "prompt": "x"},
        {"id": "n", "prompt": "y"}, {"prompt": "x", "seed": -1}, {"prompt": "x", "temperature": 0, "top_p": 0.5},
        {"prompt": "x", "strength": 0.5}, {"mask": "m.png"}, {"prompt": "x", "settings": {"stesp": 1}}, ["x"],
    ]  # fmt: skip
    jobs = table(tmp_path / "jobs.jsonl", rows)
    summary, _ = run(jobs, target_of(tmp_path / "out"), share=1.0, bad="bad")
    assert (summary.made, summary.failed, summary.listed) == (2, 13, 2)
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    told = {row["row"]: row["reason"] for row in failures}
    for row, words in {
        2: "missing.png does not exist", 3: "did you mean 'prompt'", 4: "'bad one' cannot be diffused", 5: "no JSON",
        6: "steps must be at least 1", 7: "id must be", 9: "'n' is that of an earlier job", 10: "seed must be",
        11: "temperature=0", 12: "strength is an option of edit", 13: "need the picture to edit",
        14: "did you mean 'steps'", 15: "a job is an object",
    }.items():  # fmt: skip
        assert words in told[row]
    (tmp_path / "missing.png").write_bytes(b"there now")
    summary, made = run(jobs, target_of(tmp_path / "out"), share=1.0)
    assert (summary.made, summary.there, summary.failed, len(made)) == (2, 2, 11, 2)


def test_more_failures_than_a_share_stop_the_run(tmp_path):
    jobs = table(tmp_path / "jobs.jsonl", [{"prompt": f"bad {i}" if i < 3 else "good", "seed": i} for i in range(20)])
    with pytest.raises(ArimageError, match=r"3 of \d+ jobs failed, more than 10%.*failures.jsonl.*row 3: ValueError"):
        run(jobs, target_of(tmp_path / "out"), share=0.1, bad="bad")
    assert len((tmp_path / "out" / "failures.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    summary, _ = run(jobs, target_of(tmp_path / "out"), share=0.15)
    assert (summary.failed, summary.listed) == (0, 20)
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_tables_of_every_kind_give_the_same_jobs(tmp_path):
    (tmp_path / "r.png").write_bytes(b"1")
    rows = [
        {"id": "a", "prompt": "x, y", "seed": 3, "size": "64x96", "steps": 2, "references": ["r.png"]},
        {"prompt": "füchse"},
    ]
    by_lines = list(table(tmp_path / "jobs.jsonl", rows))
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "jobs.parquet")
    with (tmp_path / "jobs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{**rows[0], "references": "r.png"}, rows[1]])
    assert [one.problem for one in by_lines] == [None, None]
    for name in ("jobs.parquet", "jobs.csv"):
        found = Table(str(tmp_path / name), BASIS)
        assert found.count == 2
        assert list(found) == by_lines


def test_an_identity_is_that_of_everything_the_picture_depends_on(tmp_path):
    (tmp_path / "r.png").write_bytes(b"1")
    row = {"prompt": "x", "seed": 1, "references": ["r.png"]}

    def identity(row=row, **basis) -> str:
        return next(iter(table(tmp_path / "jobs.jsonl", [row], Basis(**{"weights": "w"} | basis)))).identity

    same = identity()
    assert identity({**row, "steps": 50}) == same, "the default"
    assert identity(options={"preview_grid": False}) == same, "an option that is not for this job"
    others = [
        identity({**row, "prompt": "y"}), identity({**row, "seed": 2}), identity({**row, "steps": 3}),
        identity({**row, "size": 64}), identity(weights="v"), identity(options={"steps": 4}), identity(kind="webp"),
        identity(sampling={"top_p": 0.5}), identity({**row, "id": "x"}),
    ]  # fmt: skip
    os.remove(tmp_path / "r.png")
    (tmp_path / "r.png").write_bytes(b"2")
    jobs._stored_version.cache_clear()
    assert len({same, *others, identity()}) == 2 + len(others)


def test_rows_without_seeds_have_seeds_of_their_own_that_do_not_depend_on_their_places(tmp_path):
    first = list(table(tmp_path / "a.jsonl", [{"prompt": "x"}, {"prompt": "x"}, {"prompt": "y"}]))
    second = list(table(tmp_path / "b.jsonl", [{"prompt": "y"}, {"prompt": "x"}, {"prompt": "x"}]))
    assert len({job.arguments["seed"] for job in first}) == 3
    assert {job.identity for job in first} == {job.identity for job in second}
    others = table(tmp_path / "b.jsonl", [{"prompt": "y", "steps": 3}, {"prompt": "x"}], Basis("v", kind="webp"))
    assert [job.arguments["seed"] for job in others] == [first[2].arguments["seed"], first[0].arguments["seed"]]


@pytest.mark.parametrize(("name", "words"), [("jobs.txt", "jobs are read from"), ("none.jsonl", "does not exist")])
def test_what_is_no_table_is_refused(tmp_path, name, words):
    with pytest.raises(UsageError, match=words):
        Table(str(tmp_path / name), BASIS)


def test_a_full_disk_stops_the_run_with_all_that_is_there_whole(tmp_path, monkeypatch):
    jobs, write, calls = table(tmp_path / "jobs.jsonl", ROWS), stores._write_through, []

    def full(path, data):
        calls.append(path)
        if 7 < len(calls) < 100:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(stores, "_write_through", full)
    with pytest.raises(StoreError, match="No space left on device"):
        run(jobs, target_of(tmp_path / "out", "webdataset", patience=60))
    assert len(calls) < 12, "nothing is tried again that cannot succeed"
    calls.extend([None] * 100)
    summary, made = run(jobs, target_of(tmp_path / "out", "webdataset"))
    assert summary.listed == 10
    assert len(made) <= 10 - 3
    run(jobs, target_of(tmp_path / "whole", "webdataset"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_store_that_fails_for_a_while_is_waited_for(monkeypatch, tmp_path):
    """An object store in memory, of which every second operation fails."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(stores, "FIRST_WAIT", 0.001)
    calls = []
    for name in ("pipe_file", "cat_file", "ls", "rm"):
        plain = getattr(MemoryFileSystem, name)

        def failing(self, *arguments, plain=plain, **options):
            calls.append(plain)
            if len(calls) % 2:
                raise ConnectionError("reset by peer")
            return plain(self, *arguments, **options)

        monkeypatch.setattr(MemoryFileSystem, name, failing)
    place = f"memory://{tmp_path.name}"
    jobs = table(tmp_path / "jobs.jsonl", ROWS)
    summary, _ = run(jobs, target_of(place, "webdataset", patience=10))
    assert (summary.made, summary.listed) == (10, 10)
    assert len({row["job"] for row in target_of(place, patience=10).manifest()}) == 10
    calls.append(None)
    calls.extend([None] * (len(calls) % 2))
    with pytest.raises(StoreError, match=r"cannot read memory://.*reset by peer \(tried for 0 s\)"):
        Store(place, 0.0).read("manifest.jsonl")


def test_a_store_writes_whole_files_and_new_ones_once(tmp_path):
    for place in (tmp_path / "s", f"memory://{tmp_path.name}-store"):
        store = Store(str(place))
        assert store.write("a/b", b"1", new=True)
        assert not store.write("a/b", b"2", new=True)
        assert store.read("a/b") == b"1"
        assert store.write("a/b", b"3")
        (tmp_path / "file").write_bytes(b"4")
        assert not store.put("a/b", tmp_path / "file", new=True)
        assert store.put("a/c", tmp_path / "file", new=True)
        assert store.names("a") == {"b", "c"}
        assert store.names("none") == set()
        assert (store.read("a/b"), store.read("a/c"), store.exists("a/d")) == (b"3", b"4", False)
        store.remove("a")
        store.remove("a")
        assert store.names("a") == set()


def test_times_are_said_in_two_units() -> None:
    assert [duration(s) for s in (41, 700, 12_000, 450_000)] == ["41 s", "12 min", "3 h 20 min", "5 d 5 h"]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """SIGKILL while pictures are written and shards are packed; the moments follow from how much is there."""
    jobs = table(tmp_path / "jobs.jsonl", ROWS)
    command = [sys.executable, "-m", "tests.stub_run", jobs.place, str(tmp_path / "out"), "webdataset", "0.05"]
    for pictures in (2, 6):
        process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)
        while process.poll() is None and there(tmp_path / "out") < pictures:
            time.sleep(0.005)
        assert process.poll() is None
        process.kill()
        process.wait()
    before = there(tmp_path / "out")
    summary, made = run(jobs, target_of(tmp_path / "out", "webdataset"))
    assert before >= 6
    assert (summary.listed, len(made)) == (10, 10 - before)
    run(jobs, target_of(tmp_path / "whole", "webdataset"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def there(folder: Path) -> int:
    """Pictures of which a row has been written, once each."""
    found = {path.stem for path in folder.glob(".arimage/staging/*/*.json")}
    with contextlib.suppress(OSError):
        for path in folder.glob(".arimage/parts/*.jsonl"):
            found |= {json.loads(line)["id"] for line in path.read_text().splitlines()}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")}
    return len(found)
