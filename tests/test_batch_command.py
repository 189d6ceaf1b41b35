"""``arimage batch`` makes the pictures that the library makes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arimage.cli.main import run
from arimage.cli.options import with_ray_address
from arimage.images.provenance import read_recipe
from arimage.scale.stages import STAGES
from tests.conftest import photo
from tests.ray_here import RayHere
from tests.test_batch import contents

QUICK = {"steps": 2, "guidance": 1.0}


def rows(folder: Path) -> list[dict]:
    """Jobs of every task, and the pictures that they need."""
    photo(70, 50, 1).save(folder / "a.png")
    photo(64, 64, 2).save(folder / "b.png")
    mask = Image.new("L", (70, 50), 0)
    mask.paste(255, (0, 0, 40, 50))
    mask.save(folder / "mask.png")
    return [
        {"id": "text", "prompt": 'a fox, "HI"', "seed": 5, "size": "64x96"},
        {"id": "style", "prompt": "a fox in this style", "seed": 6, "size": 64, "references": ["b.png"]},
        {"id": "edit", "prompt": "blue", "seed": 7, "image": "a.png", "references": ["b.png"]},
        {"id": "masked", "prompt": "blue", "seed": 8, "references": ["a.png"], "mask": "mask.png"},
        {"id": "strong", "prompt": "blue", "seed": 9, "image": "a.png", "settings": {"strength": 0.6, "steps": 3}},
    ]


def by_the_library(pipeline, folder: Path) -> dict[str, np.ndarray]:
    """The pictures of the same jobs."""
    a, b, quick = folder / "a.png", folder / "b.png", {**QUICK}
    made = {
        "text": pipeline.generate('a fox, "HI"', seed=5, size="64x96", **quick),
        "style": pipeline.generate("a fox in this style", seed=6, size=64, references=[b], **quick),
        "edit": pipeline.edit([a, b], "blue", seed=7, **quick),
        "masked": pipeline.edit(a, "blue", seed=8, mask=folder / "mask.png", **quick),
        "strong": pipeline.edit(a, "blue", seed=9, **{**quick, "steps": 3}, strength=0.6),
    }
    return {name: np.asarray(images[0].image) for name, images in made.items()}


@pytest.fixture
def batch(checkpoint_folder, capsys, monkeypatch, tmp_path):
    """Run the command on these jobs in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    jobs = rows(tmp_path)
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)), encoding="utf-8")
    options = ["--steps", "2", "--guidance", "1", "--model", str(checkpoint_folder)]

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            run(["batch", *map(str, arguments), *options])
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return call


def test_pictures_are_those_of_the_library_and_carry_their_recipes(batch, pipeline, tmp_path):
    code, out, err = batch("jobs.jsonl", "-o", "out")
    assert (code, out) == (0, "out: 5 pictures, 5 of them new, 0 failed\n"), err
    for name, pixels in by_the_library(pipeline, tmp_path).items():
        with Image.open(f"out/00000/{name}.png") as image:
            assert np.array_equal(np.asarray(image), pixels), name
    recipe = read_recipe(Path("out/00000/masked.png"))
    assert (recipe.task, recipe.seed, recipe.mask is not None) == ("edit", 8, True)
    listed = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert [(row["row"], row["id"]) for row in listed] == list(
        enumerate(["text", "style", "edit", "masked", "strong"], 1)
    )
    code, out, _ = batch("jobs.jsonl", "-o", "out")
    assert (code, out) == (0, "out: 5 pictures, 0 of them new, 0 failed\n")
    code, out, _ = batch("jobs.jsonl", "-o", "again", "--placement", "sequential", "--token-batch", "2")
    for name in ("text", "masked"):
        assert Path(f"again/00000/{name}.png").read_bytes() == Path(f"out/00000/{name}.png").read_bytes()


def test_pools_make_the_same_files(batch, monkeypatch):
    """Of workers that share nothing with each other; tests/test_ray.py has them in processes of their own."""
    from arimage.cli import pools
    from arimage.scale.cluster import Cluster

    cluster = Cluster(batch=3)
    monkeypatch.setattr(pools, "check_pools", lambda ray, cluster: None)
    monkeypatch.setattr(pools, "open_pools", lambda ray, file: (RayHere(apart=True), cluster))
    for place, more in (("plain", []), ("pools", ["--ray"])):
        code, out, err = batch("jobs.jsonl", "-o", place, *more)
        assert (code, out) == (0, f"{place}: 5 pictures, 5 of them new, 0 failed\n"), err
    assert contents(Path("pools")) == contents(Path("plain"))


def test_workers_take_the_threads_of_the_command(batch, monkeypatch):
    from arimage.cli import pools
    from arimage.scale import pools as actors
    from arimage.scale.cluster import default_cluster

    asked = []
    monkeypatch.setattr(pools, "check_pools", lambda ray, cluster: None)
    here = RayHere(apart=True)
    here.cluster_resources = lambda: {"CPU": 4.0}
    monkeypatch.setattr(actors, "connect", lambda address: here)
    monkeypatch.setattr("arimage.scale.cluster.default_cluster", lambda *of: asked.append(of) or default_cluster(*of))
    threads = torch.get_num_threads()
    try:
        code, _, err = batch("jobs.jsonl", "-o", "out", "--ray", "--threads", "1")
        assert (code, asked, torch.get_num_threads()) == (0, [(4.0, 0.0, 1)], 1), err
    finally:
        torch.set_num_threads(threads)
    stages = {actor.inside.stage for actor in here.actors}
    assert (len(here.actors), stages) == (7, set(STAGES))  # four of diffusion
    assert {actor.inside.stages.threads for actor in here.actors} == {1}


def test_a_dry_run_keeps_nothing_and_says_how_long_it_takes(batch):
    code, out, err = batch("jobs.jsonl", "-o", "out", "--dry-run", "--dry-jobs", "2", "--json")
    assert code == 0, err
    estimate = json.loads(out)
    assert (estimate["jobs"], estimate["tried"], estimate["gpu_hours"]) == (5, 2, 0)
    assert estimate["total_seconds"] == pytest.approx(5 * sum(estimate["seconds"].values()))
    assert not Path("out").exists()


def test_what_is_wrong_is_one_line(batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for arguments, code, words in [
        (["jobs.jsonl", "-o", "out", "--ray"], 1, "pip install 'arimage[ray]'"),
        (["jobs.txt", "-o", "out"], 2, "jobs are read from .jsonl, .csv, .parquet"),
        (["none.csv", "-o", "out"], 2, "none.csv does not exist"),
        (["jobs.jsonl", "-o", "jobs.jsonl/x"], 1, "cannot write jobs.jsonl/x"),
        (["jobs.jsonl", "-o", "out", "--form", "tar"], 2, "--form must be one of"),
        (["jobs.jsonl", "-o", "out", "--cluster", "x.yaml"], 2, "--cluster is for --ray"),
    ]:
        found, out, err = batch(*arguments)
        assert (found, out) == (code, ""), err
        assert words in err
        assert err.count("\n") == 1


def test_ray_takes_an_address_or_none():
    assert with_ray_address(["batch", "--ray", "-o", "x"]) == ["batch", "--ray", "auto", "-o", "x"]
    assert with_ray_address(["batch", "--ray", "jobs.csv"]) == ["batch", "--ray", "auto", "jobs.csv"]
    assert with_ray_address(["batch", "--ray", "head:6379"]) == ["batch", "--ray", "head:6379"]
    assert with_ray_address(["batch", "jobs.csv", "--ray"]) == ["batch", "jobs.csv", "--ray", "auto"]
