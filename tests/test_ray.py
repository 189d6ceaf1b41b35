"""Pools of actors make what one process makes, whatever happens to them."""

import json
import os
import random
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

from arimage.errors import UsageError
from arimage.scale.batch import Batch
from arimage.scale.cluster import Cluster, Pool, default_cluster
from arimage.scale.jobs import Table
from arimage.scale.local import run_here
from arimage.scale.pools import Pools, connect
from arimage.scale.progress import Progress
from arimage.scale.spread import spread
from arimage.scale.stages import STAGES, Output
from arimage.scale.stores import Store
from arimage.scale.stub import StubStages
from arimage.scale.target import Target
from arimage.yaml_files import validate
from tests.stub_run import SIZES
from tests.test_batch import contents, table
from tests.test_batch_command import batch  # noqa: F401

pytestmark = pytest.mark.timeout(900)  # processes start slowly on a busy machine
SMALL = {"num_cpus": 0.25}
CLUSTER = Cluster.model_validate(
    {
        "batch": 4,
        "losses": 3,
        "stages": {"encode": SMALL, "tokens": SMALL, "diffusion": {**SMALL, "actors": 2}, "pixels": SMALL},
    }
)


@pytest.fixture(scope="module")
def ray():
    """A cluster of this machine, which ends with the tests."""
    connected = connect("local", num_cpus=2, object_store_memory=80 * 2**20)
    yield connected
    connected.shutdown()


class Failing(StubStages):
    """Fails where the stub would end its process."""

    def diffusion(self, encoded, drawn):
        if encoded[0] == "fatal":
            raise ValueError("fatal")
        return super().diffusion(encoded, drawn)


def run(ray, jobs: Table, place: Path, watch=lambda number, pools: None, share=0.0, **stub):
    """A run on the pools; ``watch`` is called at every outcome."""
    progress, store = Progress(jobs.count), Store(str(place), 0.0)
    pools = Pools(ray, StubStages(Output(store), sizes=SIZES, **stub), CLUSTER, progress)

    def execute(works):
        for number, outcome in enumerate(pools.run(works)):
            watch(number, pools)
            yield outcome

    return Batch(jobs, Target(store, "webdataset"), progress, 16, share).run(execute), pools


def alone(jobs: Table, place: Path) -> dict[str, bytes]:
    """What one process makes of the same jobs."""
    progress, store = Progress(jobs.count), Store(str(place))
    stages = Failing(Output(store), sizes=SIZES, bad="bad")
    Batch(jobs, Target(store, "webdataset"), progress, 16, 1.0).run(lambda works: run_here(stages, works, progress, 4))
    return contents(place)


def actors() -> list[psutil.Process]:
    """The processes of workers of this cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::StageActor"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_lost_workers_cost_no_picture_and_a_job_that_ends_them_fails_alone(ray, tmp_path):
    rows = [{"prompt": f"fox {i}"} for i in range(40)]
    rows[5]["prompt"], rows[9]["prompt"] = "fatal", "bad"
    jobs, moments = table(tmp_path / "jobs.jsonl", rows), random.Random(0)

    def kill(number: int, pools: Pools) -> None:
        if number in (3, 20):
            os.kill(moments.choice(actors()).pid, signal.SIGKILL)

    summary, pools = run(ray, jobs, tmp_path / "out", kill, share=1.0, fatal="fatal", bad="bad")
    assert (summary.listed, summary.failed) == (38, 2)
    assert pools.lost >= 4
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    reasons = {row["row"]: row["reason"] for row in map(json.loads, lines)}
    assert reasons[6].startswith("3 workers were lost with it, the last in diffusion")
    assert reasons[10] == "ValueError: 'bad' cannot be diffused"
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in actors())
    by_one = alone(jobs, tmp_path / "alone")
    assert {**contents(tmp_path / "out"), "failures.jsonl": by_one["failures.jsonl"]} == by_one


def test_the_command_makes_the_files_of_a_run_without_ray(ray, batch):  # noqa: F811
    """Text, references, edits, a mask; the networks run in workers."""
    for place, more in (("plain", []), ("pools", ["--ray"])):
        code, out, err = batch("jobs.jsonl", "-o", place, *more)
        assert (code, out) == (0, f"{place}: 5 pictures, 5 of them new, 0 failed\n"), err
    assert contents(Path("pools")) == contents(Path("plain"))


def test_a_function_is_spread_over_workers_in_order(ray):
    pool = Pool(num_cpus=0.25, actors=2)
    assert list(spread(ray, pool, partial(partial, pow, 2), range(20))) == [2**i for i in range(20)]
    with pytest.raises(ValueError, match="invalid literal"):
        list(spread(ray, pool, partial(partial, int), ["1", "x"]))


def test_a_cluster_file_is_checked():
    cluster = validate({"stages": {"diffusion": {"actors": [1, 8], "num_gpus": 1, "memory": 30}}}, Cluster, "c.yaml")
    pool = cluster.pool("diffusion")
    assert (pool.least, pool.most, pool.options()["memory"], cluster.gpus) == (1, 8, 30_000_000_000, 8)
    assert cluster.pool("tokens").most == 1
    assert "runtime_env" not in pool.options()
    assert cluster.pool("tokens").options()["runtime_env"]["env_vars"] == {"OMP_WAIT_POLICY": "PASSIVE"}
    for wrong, words in [
        ({"stages": {"difusion": {}}}, "difusion"),
        ({"stages": {"tokens": {"actors": [2, 1]}}}, "actors"),
    ]:
        with pytest.raises(UsageError, match=words):
            validate(wrong, Cluster, "c.yaml")
    assert default_cluster(16, 8, threads=16).gpus == pytest.approx(8)
    assert default_cluster(2, 0, threads=2).pool("tokens").num_cpus == 0.5


def test_without_gpus_there_are_as_many_workers_as_threads_leave_room_for():
    cluster = default_cluster(8, 0, threads=2)
    pools = [cluster.pool(stage) for stage in STAGES]
    assert [pool.most for pool in pools] == [1, 1, 4, 1]
    assert sum(pool.num_cpus * pool.most for pool in pools) <= 8
    assert default_cluster(2, 0, threads=4).pool("diffusion").most == 1
    assert default_cluster(8, 1, threads=2).pool("diffusion").most == 1
