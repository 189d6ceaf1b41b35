"""A run of stub stages in a process that can be killed: ``python -m tests.stub_run JOBS TARGET FORM SECONDS``."""

import sys

from arimage.scale.batch import Batch
from arimage.scale.jobs import Basis, Table
from arimage.scale.local import run_here
from arimage.scale.progress import Progress
from arimage.scale.stages import Output
from arimage.scale.stores import Store
from arimage.scale.stub import StubStages
from arimage.scale.target import Target

SIZES = {"encoded": 64, "codes": 64, "latents": 64, "picture": 64}

if __name__ == "__main__":
    jobs, place, form, seconds = sys.argv[1:]
    table, store = Table(jobs, Basis("w")), Store(place)
    progress = Progress(table.count)
    stages = StubStages(Output(store), {"diffusion": float(seconds)}, SIZES)
    run = Batch(table, Target(store, form), progress, 4, 0.0)  # type: ignore[arg-type]
    print(run.run(lambda works: run_here(stages, works, progress, batch=3)))
