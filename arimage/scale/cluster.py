"""What a cluster gives to each stage: a YAML file.

batch: 16
stages:
  tokens:    {actors: 1, num_gpus: 1, memory: 40}
  diffusion: {actors: [1, 16], num_gpus: 1, memory: 30}
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arimage.scale.stages import STAGES, Stage

# Workers have the driver's number of threads, on which sums depend, and may share cores: those that wait must not spin.
SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}


class Pool(BaseModel):
    """The workers of a stage.

    Attributes:
        actors: how many, or [least, most]: more are started while work waits, idle ones are ended.
        num_cpus, num_gpus, memory, resources: of each, as Ray counts them; memory in GB, kept free for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    actors: int | tuple[int, int] = Field(1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    memory: float | None = Field(None, gt=0)
    resources: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"actors must be a number of at least 1, or [least, most]; got {self.actors}")
        return self

    @property
    def least(self) -> int:
        return self.actors if isinstance(self.actors, int) else self.actors[0]

    @property
    def most(self) -> int:
        return self.actors if isinstance(self.actors, int) else self.actors[1]

    def options(self) -> dict[str, Any]:
        """As Ray takes them."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": self.resources}
        if not self.num_gpus:
            options["runtime_env"] = {"env_vars": SHARED_CORES}
        return options if self.memory is None else options | {"memory": int(self.memory * 1e9)}


class Cluster(BaseModel):
    """The pools.

    Attributes:
        batch: pictures whose tokens are drawn in one batch; None is as many as the library takes together.
        losses: workers that a job may lose before it counts as failed.
        idle: seconds after which a worker above the least is ended.
        stages: a pool each; what is left out has one worker.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int | None = Field(None, ge=1)
    losses: int = Field(3, ge=1)
    idle: float = Field(60.0, gt=0)
    stages: dict[Stage, Pool] = Field(default_factory=dict)

    def pool(self, stage: Stage) -> Pool:
        """Of a stage."""
        return self.stages.get(stage, Pool())

    @property
    def together(self) -> int:
        """Pictures of a batch of tokens."""
        if self.batch is not None:
            return self.batch
        from arimage.autoregressive.generation import TOKEN_BATCH

        return TOKEN_BATCH

    @property
    def gpus(self) -> float:
        """Of all workers, at most."""
        return sum(self.pool(stage).num_gpus * self.pool(stage).most for stage in STAGES)


def default_cluster(cpus: float, gpus: float, threads: int) -> Cluster:
    """Pools for a cluster of which no more is known.

    Where there are GPUs the first is for everything but diffusion. Without, as many workers of diffusion as CPUs have
    room for, each with so many ``threads``: the other stages take little time, and share CPUs with them.
    """
    if gpus >= 2:
        stages: dict[Stage, Pool] = {
            "encode": Pool(num_gpus=0.1), "tokens": Pool(num_gpus=0.8), "pixels": Pool(num_gpus=0.1),
            "diffusion": Pool(actors=int(gpus) - 1, num_gpus=1),
        }  # fmt: skip
    else:
        workers = 1 if gpus else max(1, int(cpus // threads))
        each = {"num_cpus": min(1.0, cpus / (len(STAGES) - 1 + workers)), "num_gpus": gpus / len(STAGES)}
        stages = {stage: Pool(actors=workers if stage == "diffusion" else 1, **each) for stage in STAGES}
    return Cluster(stages=stages)
