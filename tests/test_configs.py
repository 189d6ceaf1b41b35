"""The stage files: what they share, what they hand on, and what they and their index say about themselves."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arimage.training.config import TrainConfig
from arimage.yaml_files import load_yaml
from tests.stages import CONFIGS, SIZES, STAGES, comment, cost, name, stages

SIZE_SETTINGS = {"start", "output", "batch_size", "accumulation", "learning_rate"}
INITIAL = {"autoencoder": "pca_init", "autoregressive": "codes_from_codebook", "decoder": "codes_from_codebook"}
CONFIG = {path: load_yaml(path, TrainConfig) for path in STAGES}
INDEX = (CONFIGS / "README.md").read_text(encoding="utf-8")

every_stage = pytest.mark.parametrize("path", STAGES, ids=name)


def contents(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def extended(path: Path) -> list[Path]:
    """The files that a file names in ``extends``."""
    found = contents(path).get("extends", [])
    return [(path.parent / file).resolve() for file in ([found] if isinstance(found, str) else found)]


def begins(path: Path) -> bool:
    """Whether no earlier stage of its size trains the stage's network; ``pixels`` is no stage but put together."""
    made = {config.output: config for other, config in CONFIG.items() if other.parent == path.parent}
    config = CONFIG[path]
    earlier = made.get(config.start.removesuffix("/checkpoint"))
    while earlier is not None and earlier.train != config.train:
        earlier = made.get(earlier.start.removesuffix("/checkpoint"))
    return earlier is None


@every_stage
def test_a_stage_is_named_by_what_it_trains_and_writes_there(path: Path) -> None:
    config = CONFIG[path]
    assert path.stem.startswith(config.train)
    assert config.output == f"runs/{path.parent.name}/{path.stem}"


@every_stage
def test_a_stage_builds_on_shared_files_and_never_on_another_stage(path: Path) -> None:
    assert extended(path)
    assert {file.parent.name for file in extended(path)} == {"shared"}


def test_what_matters_at_initialisation_only_stands_in_the_first_stage_of_a_network() -> None:
    on = {
        name(path)
        for path, config in CONFIG.items()
        if any(getattr(getattr(config, network), switch) for network, switch in INITIAL.items())
    }
    assert on == {"nano/autoencoder", "nano/autoregressive-256", "nano/decoder-256"}
    assert all(begins(path) for path in STAGES if name(path) in on)


def test_no_stage_is_handed_such_a_switch_or_has_to_switch_it_off() -> None:
    handed_on = [*CONFIGS.glob("shared/*.yaml"), *CONFIGS.glob("*/shared/*.yaml")]
    assert len(handed_on) > 10
    for path in (*handed_on, *(path for path in STAGES if not begins(path))):
        for network, switch in INITIAL.items():
            assert switch not in contents(path).get(network, {}), path


@pytest.mark.parametrize("path", stages("base"), ids=name)
def test_base_and_the_released_size_differ_in_start_batch_and_rate_alone(path: Path) -> None:
    other = CONFIGS / "glm-image-9b" / path.name
    assert set(contents(path)) | set(contents(other)) <= SIZE_SETTINGS | {"extends"}
    assert extended(path) == extended(other) == [CONFIGS / "shared" / path.name]
    assert CONFIG[path].model_dump(exclude=SIZE_SETTINGS) == CONFIG[other].model_dump(exclude=SIZE_SETTINGS)


@every_stage
def test_a_stage_begins_with_what_it_learns_its_command_its_needs_and_its_costs(path: Path) -> None:
    text, config = comment(path), CONFIG[path]
    assert re.match(r"The .{20,}", text)
    assert re.search(rf"^(accelerate launch .* -m )?arimage train configs/{name(path)}\.yaml$", text, re.MULTILINE)
    needs = text[text.index("Needs: ") : text.index("Costs: ")]
    sources = [
        place for source in (*config.data, *config.evaluation) for place in (source.path, source.assets) if place
    ]
    for place in {config.start, *sources}:
        assert re.search(rf"{re.escape(place)}[,. ]", needs), place
    launched = re.search(r"--config_file (\S+)", text)
    gpus = re.search(r"on each of (\d+) GPUs", cost(path))
    assert bool(launched) == bool(gpus)
    if launched and gpus:
        spread = contents(CONFIGS.parent / launched[1])
        assert spread["num_processes"] == int(gpus[1])


def test_the_index_lists_every_stage_with_its_own_figures() -> None:
    rows = dict(re.findall(r"^\| \[[\w-]+\]\(([\w-]+/[\w-]+)\.yaml\) \| (.+) \|$", INDEX, re.MULTILINE))
    recipe = re.findall(
        r"^ *train(?:_prepared)? ([\w-]+)", (CONFIGS / "nano" / "run.sh").read_text(encoding="utf-8"), re.MULTILINE
    )
    wanted = {}
    for path, config in CONFIG.items():
        size, planned = path.parent.name, re.match(r"(\d+) GB on each of (\d+) GPUs, ([\d.]+) hours", cost(path))
        gpus = int(planned[2]) if planned else 1
        cells = [
            config.start.removeprefix(f"runs/{size}/").removesuffix("/checkpoint"), f"{config.steps:,}",
            f"{config.batch_size * config.accumulation * gpus:,}", f"{config.learning_rate:g}",
        ]  # fmt: skip
        if planned:
            cells += [planned[2], planned[1], planned[3]]
        else:
            cells += ["yes" if path.stem in recipe else "no", cost(path)]
        wanted[name(path)] = " | ".join(cells)
    assert {key: row for key, row in rows.items() if Path(key).name not in ("model", "common", "fsdp2")} == wanted


def test_the_index_names_every_folder_and_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", INDEX)
    for link in links:
        assert (CONFIGS / link).exists(), link
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert folders == {link.split("/")[0] for link in links if not link.startswith("..")}
    assert set(SIZES) == {"nano", "base", "glm-image-9b"}
