"""Pools of actors make what one process makes, whatever happens to them."""

import json
import os
import random
import signal
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

from arimage.errors import UsageError
from arimage.scale.batch import Batch
from arimage.scale.cluster import Cluster, default_cluster
from arimage.scale.jobs import Table
from arimage.scale.local import run_here
from arimage.scale.pools import Pools, connect
from arimage.scale.progress import Progress
from arimage.scale.stages import Output
from arimage.scale.stores import Store, StoreError
from arimage.scale.stub import StubStages
from arimage.scale.target import Target
from arimage.yaml_files import validate
from tests.stub_run import SIZES
from tests.test_batch import contents, table

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
    stages = StubStages(Output(store), sizes=SIZES)
    Batch(jobs, Target(store, "webdataset"), progress, 16, 0.0).run(lambda works: run_here(stages, works, progress, 4))
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


def test_lost_workers_cost_no_picture_and_make_none_twice(ray, tmp_path):
    jobs = table(tmp_path / "jobs.jsonl", [{"prompt": f"fox {i}"} for i in range(40)])
    moments = random.Random(0)

    def kill(number: int, pools: Pools) -> None:
        if number in (3, 17, 30):
            os.kill(moments.choice(actors()).pid, signal.SIGKILL)

    summary, pools = run(ray, jobs, tmp_path / "out", kill, seconds={"diffusion": 0.05})
    assert (summary.listed, summary.failed) == (40, 0)
    assert pools.lost >= 2, "the last one may be lost when nothing is left for it"
    assert contents(tmp_path / "out") == alone(jobs, tmp_path / "alone")
    assert actors() == [] or all(process.status() == psutil.STATUS_ZOMBIE for process in actors())


def test_a_job_that_ends_its_workers_fails_and_no_other_does(ray, tmp_path):
    rows = [{"prompt": f"fox {i}"} for i in range(12)]
    rows[5]["prompt"], rows[9]["prompt"] = "fatal", "bad"
    jobs = table(tmp_path / "jobs.jsonl", rows)
    summary, _ = run(ray, jobs, tmp_path / "out", share=1.0, fatal="fatal", bad="bad")
    assert (summary.listed, summary.failed) == (10, 2)
    reasons = {
        row["row"]: row["reason"] for row in map(json.loads, (tmp_path / "out/failures.jsonl").read_text().splitlines())
    }
    assert reasons[6].startswith("3 workers were lost with it, the last in diffusion")
    assert reasons[10] == "ValueError: 'bad' cannot be diffused"


def test_what_waits_is_bounded_where_a_stage_is_slow(ray, tmp_path):
    """All taken jobs that are not finished; 2 x 4 for tokens and 4 on their way, and so on."""
    jobs = table(tmp_path / "jobs.jsonl", [{"prompt": f"fox {i}"} for i in range(120)])
    most = 0

    def watch(number: int, pools: Pools) -> None:
        nonlocal most
        most = max(most, pools.progress.stages["encode"].pictures - number)

    summary, _ = run(ray, jobs, tmp_path / "out", watch, seconds={"pixels": 0.02})
    assert summary.listed == 120
    assert most < 48


def test_a_target_that_a_worker_cannot_write_ends_the_run(ray, tmp_path):
    jobs = table(tmp_path / "jobs.jsonl", [{"prompt": "fox"}])
    (tmp_path / "file").write_text("")
    stages = StubStages(Output(Store(str(tmp_path / "file"), 0.0)), sizes=SIZES)
    progress = Progress(1)
    with pytest.raises(StoreError, match=r"cannot write .*file/"):
        Batch(jobs, Target(Store(str(tmp_path / "out"))), progress, 4, 0.0).run(
            Pools(ray, stages, CLUSTER, progress).run
        )


def test_a_cluster_file_is_checked():
    cluster = validate({"stages": {"diffusion": {"actors": [1, 8], "num_gpus": 1, "memory": 30}}}, Cluster, "c.yaml")
    pool = cluster.pool("diffusion")
    assert (pool.least, pool.most, pool.options()["memory"], cluster.gpus) == (1, 8, 30_000_000_000, 8)
    assert cluster.pool("tokens").most == 1
    for wrong, words in [
        ({"stages": {"difusion": {}}}, "difusion"),
        ({"stages": {"tokens": {"actors": [2, 1]}}}, "actors"),
    ]:
        with pytest.raises(UsageError, match=words):
            validate(wrong, Cluster, "c.yaml")
    assert default_cluster(16, 8).gpus == pytest.approx(8)
    assert default_cluster(2, 0).pool("tokens").num_cpus == 0.5
