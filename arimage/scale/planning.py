"""How many workers of each stage a number of GPUs is best divided into, from measured times, and what that makes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arimage.errors import UsageError
from arimage.scale.progress import Progress, duration
from arimage.scale.stages import STAGES, Stage

MILLION = 1_000_000


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of a picture in each stage; of tokens the share of a picture in its batch."""

    encode: float
    tokens: float
    diffusion: float
    pixels: float

    def of(self, stage: Stage) -> float:
        """Of one stage."""
        return float(getattr(self, stage))

    @property
    def whole(self) -> float:
        """Of a picture from its beginning to its end, one stage after another."""
        return sum(self.of(stage) for stage in STAGES)

    @classmethod
    def read(cls, path: Path) -> "StageSeconds":
        """From what ``arimage batch --json`` prints, with ``--dry-run`` or without.

        Raises:
            UsageError: it holds no times.
        """
        try:
            seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
            return cls(**{stage: float(seconds[stage]) for stage in STAGES})
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path} holds no times of stages: write it with arimage batch JOBS -o TARGET --dry-run --json > {path}"
            ) from None


@dataclass(frozen=True)
class Estimate:
    """What all jobs of a table take.

    Attributes:
        seconds: of a picture in each stage.
        jobs, tried: of the table, and those that were made to find out.
        gpus: of all workers.
        pictures_a_second: None where the stages take turns in one process.
    """

    seconds: StageSeconds
    jobs: int
    tried: int
    gpus: float
    pictures_a_second: float | None = None

    @classmethod
    def of(cls, progress: Progress, elapsed: float) -> "Estimate":
        """From the progress of a few jobs that took so long."""
        seconds = StageSeconds(**{stage: progress.stages[stage].of_one for stage in STAGES})
        rate = None
        if progress.workers:
            rate = min(progress.workers[stage] / max(seconds.of(stage), 1e-9) for stage in STAGES)
        return cls(seconds, progress.total, progress.stages["pixels"].pictures, progress.gpus, rate)

    @property
    def total(self) -> float:
        """Seconds."""
        rate = self.pictures_a_second or 1 / max(self.seconds.whole, 1e-9)
        return self.jobs / rate

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        seconds = {stage: self.seconds.of(stage) for stage in STAGES}
        return {
            "seconds": seconds, "jobs": self.jobs, "tried": self.tried, "total_seconds": self.total,
            "gpu_hours": self.total * self.gpus / 3600,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For people."""
        stages = ", ".join(f"{stage} {self.seconds.of(stage):.3g} s" for stage in STAGES)
        hours = self.total * self.gpus / 3600
        return [
            f"a picture: {stages} (of {self.tried}; tokens of fewer pictures in a batch take longer for each)",
            f"{self.jobs} jobs: {duration(self.total)}" + (f", {hours:.1f} GPU-hours" if self.gpus else ", no GPU"),
        ]


@dataclass(frozen=True)
class Division:
    """Workers of each stage, and the pictures a second that they make together.

    Attributes:
        shares: GPUs of each stage; below 1 where stages share one.
        rate: pictures a second, of the stage that holds the others up.
        slowest: that stage.
    """

    shares: dict[Stage, float]
    rate: float
    slowest: Stage

    @property
    def gpus(self) -> float:
        return sum(self.shares.values())

    def busy(self, seconds: StageSeconds) -> float:
        """The share of the GPUs' time in which they work."""
        return self.rate * seconds.whole / self.gpus


def divide(seconds: StageSeconds, gpus: int) -> Division:
    """The best division of some GPUs: so many for diffusion, the others each for the other stages in turn.

    One GPU holds all stages, which take turns.

    Raises:
        UsageError: there is no GPU.
    """
    if gpus < 1:
        raise UsageError("a division needs at least one GPU")
    if gpus == 1:
        shares: dict[Stage, float] = {stage: seconds.of(stage) / seconds.whole for stage in STAGES}
        return Division(shares, 1 / seconds.whole, max(STAGES, key=seconds.of))
    front = seconds.encode + seconds.tokens + seconds.pixels
    best = None
    for diffusion in range(1, gpus):
        others = gpus - diffusion
        rates: dict[Stage, float] = {"diffusion": diffusion / max(seconds.diffusion, 1e-9), "tokens": others / front}
        slowest = min(rates, key=rates.__getitem__)
        if best is None or rates[slowest] > best[0]:
            best = rates[slowest], slowest, diffusion
    assert best is not None
    rate, slowest, diffusion = best
    shares = {stage: (gpus - diffusion) * seconds.of(stage) / front for stage in ("encode", "tokens", "pixels")}
    return Division({**shares, "diffusion": float(diffusion)}, rate, slowest)


def simulated(seconds: StageSeconds, gpus: int, overhead: float = 0.03, losses_a_day: float = 0.01) -> float:
    """Pictures a second of many GPUs: those of :func:`divide`, less what is lost between calls and with machines.

    Args:
        overhead: share of a worker's time between two calls.
        losses_a_day: how often a GPU's machine is lost; each costs ten minutes of that GPU.
    """
    return divide(seconds, gpus).rate * (1 - overhead) * (1 - losses_a_day * 600 / 86400)


# The released 9B + 7B model at 1024 px in 20 steps, a network each on two H100: vLLM-Omni #3042, docs/benchmarks.md.
# Tokens of one picture take 19.0 s there; of sixteen together five times that, which is our own factor at small size.
# The 2.7 s of the whole that are neither tokens nor diffusion stand for pixels.
PUBLISHED = StageSeconds(encode=0.0, tokens=19.0 * 5 / 16, diffusion=5.9, pixels=2.7)


def plan_serving(times: Path | None, gpus: int, price: float | None = None) -> dict[str, Any]:
    """The division for ``arimage plan --serve``, as plain data; without times those that are published."""
    seconds = PUBLISHED if times is None else StageSeconds.read(times)
    division = divide(seconds, gpus)
    hours = MILLION / division.rate / 3600
    return {
        "times": "published, 9B + 7B at 1024 px" if times is None else str(times),
        "seconds": {stage: seconds.of(stage) for stage in STAGES},
        "gpus": gpus,
        "diffusion_gpus": division.shares["diffusion"] if gpus == 1 else round(division.shares["diffusion"]),
        "shares": division.shares,
        "pictures_a_second": division.rate,
        "simulated_pictures_a_second": simulated(seconds, gpus),
        "held_up_by": division.slowest,
        "busy": division.busy(seconds),
        "hours_a_million": hours,
        "gpu_hours_a_million": hours * gpus,
        "cost_a_million": None if price is None else hours * gpus * price,
    }


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """It in words: workers, rate, and what a million pictures take."""
    gpus, diffusion = plan["gpus"], plan["diffusion_gpus"]
    divided = f"{gpus - diffusion} for encode, tokens and pixels, {diffusion} for diffusion"
    cost = plan["cost_a_million"]
    return [
        f"a picture ({plan['times']}): " + ", ".join(f"{name} {time:.3g} s" for name, time in plan["seconds"].items()),
        f"{gpus} GPUs: {divided}" if gpus > 1 else "1 GPU: all stages in turn",
        f"{plan['pictures_a_second']:.3g} pictures/s, held up by {plan['held_up_by']}; GPUs busy {plan['busy']:.0%}",
        f"a million pictures: {duration(3600 * plan['hours_a_million'])}, {plan['gpu_hours_a_million']:,.0f} GPU-hours"
        + ("" if cost is None else f", cost {cost:,.0f}"),
    ]
