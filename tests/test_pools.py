"""What pools decide, without a cluster: who takes what waits, and what becomes of it when workers are lost."""

import random
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from arimage.errors import ArimageError
from arimage.scale.batch import Batch
from arimage.scale.cluster import Cluster
from arimage.scale.local import run_here
from arimage.scale.pools import Pools
from arimage.scale.progress import Progress
from arimage.scale.stages import Output, Work
from arimage.scale.stores import Store, StoreError
from arimage.scale.stub import StubStages
from arimage.scale.target import Place, Target
from tests.conftest import photo
from tests.ray_here import RayHere
from tests.stub_run import SIZES
from tests.test_batch import contents, table

CLUSTER = Cluster.model_validate({"batch": 4, "losses": 20, "stages": {"diffusion": {"actors": [1, 3]}}})
ROWS = [{"prompt": f"fox {i}", "seed": i} for i in range(60)]


@dataclass
class Watching(StubStages):
    """Keeps the sizes of batches, and fails where several prompts of one name this."""

    batches: list[int] = field(default_factory=list)
    spoilt: str = "\0"

    def tokens(self, encoded):
        self.batches.append(len(encoded))
        if any(self.spoilt in prompt for prompt, _, _ in encoded):
            raise ValueError("spoilt")
        return super().tokens(encoded)


def run(ray, jobs, place, share=0.0, cluster=CLUSTER, **stub):
    progress, store = Progress(jobs.count), Store(str(place))
    stages = Watching(Output(store), sizes=SIZES, **stub)
    pools = Pools(ray, stages, cluster, progress)
    return Batch(jobs, Target(store, "webdataset"), progress, 16, share).run(pools.run), stages, pools


@pytest.mark.parametrize("seed", range(3))
def test_workers_lost_at_random_change_nothing(tmp_path, seed):
    jobs, chance = table(tmp_path / "jobs.jsonl", ROWS), random.Random(seed)
    summary, _, pools = run(RayHere(lambda name, number: chance.random() < 0.08), jobs, tmp_path / "out")
    assert (summary.listed, summary.failed) == (60, 0)
    assert pools.lost > 3
    progress, store = Progress(jobs.count), Store(str(tmp_path / "alone"))
    stages = StubStages(Output(store), sizes=SIZES)
    Batch(jobs, Target(store, "webdataset"), progress, 16, 0.0).run(lambda works: run_here(stages, works, progress, 4))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_tokens_are_drawn_in_batches_and_workers_are_added_where_work_waits(tmp_path):
    ray = RayHere(seconds={"tokens": 1.0, "diffusion": 1.0})
    _, stages, _ = run(ray, table(tmp_path / "jobs.jsonl", ROWS), tmp_path / "out")
    assert max(stages.batches) == 4
    assert sum(stages.batches) == 60
    assert len(stages.batches) <= 25
    assert len(ray.actors) == 6
    assert all(actor.gone for actor in ray.actors), "they end with the run"


def test_the_slowest_stage_is_kept_busy(tmp_path):
    """With the times of the released model's stages: a batch of tokens 60 s, diffusion 16 s on each of four workers."""
    seconds = {"encode": 0.2, "tokens": 60.0, "diffusion": 16.0, "pixels": 1.0}
    jobs = table(tmp_path / "jobs.jsonl", [{"prompt": f"fox {i}", "seed": i} for i in range(400)])
    ray, progress, ends = RayHere(seconds=seconds), Progress(jobs.count), []
    cluster = Cluster.model_validate({"batch": 16, "stages": {"diffusion": {"actors": 4}}})
    for _ in Pools(ray, StubStages(sizes=SIZES), cluster, progress).run(Work(job, Place("0")) for job in jobs):
        ends.append(ray.now)
    rate = (len(ends) - 41) / (ends[-1] - ends[40])
    assert rate > 0.95 * min(16 / 60, 4 / 16)


def test_a_job_that_spoils_its_batch_fails_alone(tmp_path):
    rows = [*ROWS[:5], {"prompt": "spoilt"}, *ROWS[5:20]]
    summary, _, _ = run(RayHere(), table(tmp_path / "jobs.jsonl", rows), tmp_path / "out", share=0.5, spoilt="spoilt")
    assert (summary.listed, summary.failed) == (20, 1)


def test_workers_that_cannot_start_end_the_run(tmp_path):
    jobs = table(tmp_path / "jobs.jsonl", ROWS)
    with pytest.raises(ArimageError, match="workers of encode end while they start"):
        run(RayHere(lambda name, number: name == "ready"), jobs, tmp_path / "out")


def test_what_waits_is_bounded_where_a_stage_is_slow(tmp_path):
    """At most two batches wait for tokens, two pictures for each worker behind them, and two calls of each are made."""
    jobs, most, encoded, finished = table(tmp_path / "jobs.jsonl", ROWS), 0, 0, 0
    progress, store = Progress(jobs.count), Store(str(tmp_path / "out"))
    pools = Pools(RayHere(), StubStages(Output(store), sizes=SIZES), CLUSTER, progress)
    for _ in pools.run(Work(job, Place("0")) for job in jobs):
        finished += 1
        encoded = progress.stages["encode"].pictures
        most = max(most, encoded - finished)
    assert finished == 60
    assert most <= 8 + 4 + 2 * (6 + 4) + 8


def test_a_target_that_a_worker_cannot_write_ends_the_run(tmp_path):
    jobs = table(tmp_path / "jobs.jsonl", ROWS)
    (tmp_path / "file").write_text("")
    progress = Progress(jobs.count)
    stages = StubStages(Output(Store(str(tmp_path / "file"), 0.0)), sizes=SIZES)
    pools = Pools(RayHere(), stages, CLUSTER, progress)
    with pytest.raises(StoreError, match=r"cannot (write|read|list) .*file/"):
        Batch(jobs, Target(Store(str(tmp_path / "out"))), progress, 4, 0.0).run(pools.run)


class Served:
    """A worker of a server on pools of the small model, in this process."""

    def __init__(self, pipeline, ray=None, **cluster):
        pytest.importorskip("prometheus_client")
        from arimage.server.pools import PoolWorker, ServingStages

        stages = ServingStages({})
        stages.use(pipeline)
        self.gate, whole = threading.Event(), stages.tokens
        stages.tokens = lambda encoded: (self.gate.wait(30), whole(encoded))[1]
        self.gate.set()
        self.worker = PoolWorker(pipeline, 16, ray or RayHere(), stages, Cluster(batch=4))
        self.events = {}
        self.worker.start()

    def ask(self, name, call):
        from arimage.server.worker import Job

        self.events[name] = []
        job = Job(name, call, self.events[name].append)
        self.until(lambda: self.worker.state != "loading")
        self.worker.submit(job)
        return job

    def ended(self, name):
        """The pictures of a request, and why it ended."""
        from arimage.server.worker import Ended, Finished

        self.until(lambda: self.events[name] and isinstance(self.events[name][-1], Ended))
        *pictures, end = self.events[name]
        assert all(isinstance(one, Finished) for one in pictures)
        return [one.image for one in pictures], end.error

    def until(self, condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    def close(self):
        self.gate.set()
        self.worker.close(0)
        assert self.worker.join(30)


@pytest.fixture
def calls(pipeline):
    quick = {"steps": 2, "guidance": 1.0}
    mask = photo(64, 64).convert("L").point(lambda value: 255 * (value > 100))
    return {
        "two": pipeline.prepare_generation("a fox", size=64, seed=3, images_per_prompt=2, **quick),
        "edit": pipeline.prepare_edit(photo(64, 64, 1), "blue", seed=4, mask=mask, **quick),
        "other": pipeline.prepare_generation("a cat", size=64, seed=5, **quick),
    }


def test_requests_of_a_server_on_pools_get_the_pictures_of_the_library(pipeline, calls):
    losses = iter([False, True])
    served = Served(pipeline, RayHere(lambda name, number: name == "diffusion" and next(losses, False)))
    for name, call in calls.items():
        served.ask(name, call)
    for name, call in calls.items():
        images, error = served.ended(name)
        assert error is None
        for image, wanted in zip(images, pipeline.run(call), strict=True):
            assert np.array_equal(np.asarray(image.image), np.asarray(wanted.image))
            assert image.recipe == wanted.recipe
    assert not served.worker.busy
    served.close()


def test_a_cancelled_request_leaves_the_stages_it_waits_for(pipeline, calls):
    served = Served(pipeline)
    served.gate.clear()
    jobs = {name: served.ask(name, call) for name, call in calls.items()}
    served.until(lambda: len(served.worker._taken) >= 1)
    served.worker.cancel(jobs["other"])
    served.gate.set()
    assert served.ended("two")[1] is None
    served.until(lambda: not served.worker.busy)
    assert all(not hasattr(event, "image") for event in served.events["other"])
    served.close()
