"""The stage files of the repository, and what their opening comments say."""

import re
from pathlib import Path

CONFIGS = Path(__file__).parent.parent / "configs"
SIZES = sorted(path.parent.name for path in CONFIGS.glob("*/model.yaml"))


def stages(size: str) -> list[Path]:
    """The stages of a model size: its files that are neither dimensions nor an evaluation."""
    return [path for path in sorted((CONFIGS / size).glob("*.yaml")) if path.stem not in ("model", "evaluate")]


STAGES = [path for size in SIZES for path in stages(size)]


def name(path: Path) -> str:
    """``base/decoder-512``, for the names of tests."""
    return f"{path.parent.name}/{path.stem}"


def comment(path: Path) -> str:
    """The comment at the beginning of a file, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])


def cost(path: Path) -> str:
    """What a stage costs, by its opening comment."""
    found = re.search(r"^Costs: (.+)\.$", comment(path), re.MULTILINE)
    assert found, f"{path} does not say what it costs"
    return found[1]
