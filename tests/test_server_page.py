"""What the page needs of the server: its files, recipes of pictures, progress, feathering."""

import base64
import http.client
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from arimage.inference.pipeline import ImagePipeline
from tests.conftest import photo

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from arimage.server.web import FOLDER
from tests.server_thread import KEY, Running


@pytest.fixture(scope="module")
def port(pipeline: ImagePipeline) -> Iterator[int]:
    server = Running(pipeline, api_key=KEY, max_pixels=2**18, grace=5)
    yield server.port
    server.close()


def ask(port: int, method: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def data_url(content: bytes) -> dict[str, str]:
    return {"image_url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def events(answer: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: ")]


def test_the_page_is_sent_without_a_key_and_may_load_nothing_from_elsewhere(port: int) -> None:
    status, headers, page = ask(port, "GET", "/", key="")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.decode()):
        status, headers, _ = ask(port, "GET", path, key="")
        assert (path, status) == (path, 200)
        assert headers["x-content-type-options"] == "nosniff"
    assert ask(port, "GET", "/page/../config.py", key="")[0] == 404
    assert ask(port, "GET", "/page/%2e%2e/config.py", key="")[0] == 404
    assert ask(port, "GET", "/v1/models", key="")[0] == 401


def test_nothing_on_the_page_names_another_origin_or_stands_inline() -> None:
    for path in FOLDER.rglob("*.*"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|<style|\sstyle=|\son[a-z]+=\"", text), path.name


def test_every_text_of_the_page_is_there_in_both_languages() -> None:
    english, chinese = (FOLDER / "words.js").read_text(encoding="utf-8").split("  zh: {")
    keys = [set(re.findall(r'^    "([\w.]+)":', part, re.MULTILINE)) for part in (english, chinese)]
    assert keys[0] == keys[1]
    used = set()
    for path in [*FOLDER.rglob("*.js"), FOLDER / "index.html"]:
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'\bt\("([\w.]+)"', text)) | set(re.findall(r'data-t(?:-[a-z-]+)?="([\w.]+)"', text))
    assert not used - keys[0]


def test_a_picture_tells_its_recipe(port: int, pipeline: ImagePipeline) -> None:
    made = pipeline.generate("a “fox”", size=64, seed=2**60 + 1, steps=1)[0]
    for file_format in ("png", "jpeg", "webp"):
        body = {"images": [data_url(made.to_bytes(file_format))]}
        status, _, answer = ask(port, "POST", "/v1/images/recipe", body)
        assert status == 200
        assert json.loads(answer)["recipe"] == json.loads(made.recipe.to_json())
    foreign = {"images": [data_url(png(photo(40, 30)))]}
    assert json.loads(ask(port, "POST", "/v1/images/recipe", foreign)[2]) == {"recipe": None, "parameters": None}


def test_a_picture_of_another_program_tells_its_parameters(port: int) -> None:
    buffer, texts = io.BytesIO(), PngInfo()
    texts.add_text("parameters", "a red fox\nSteps: 20, CFG scale: 7, Seed: 965400086, Size: 96x64")
    photo(96, 64).save(buffer, "PNG", pnginfo=texts)
    answer = json.loads(ask(port, "POST", "/v1/images/recipe", {"images": [data_url(buffer.getvalue())]})[2])
    told = answer["parameters"]
    assert answer["recipe"] is None
    assert (told["prompt"], told["seed"], told["size"]) == ("a red fox", 965400086, [96, 64])


def test_what_is_no_picture_or_too_large_has_no_recipe(port: int) -> None:
    cases: list[tuple[list[dict[str, str]], int]] = [
        ([], 400),
        ([data_url(b"no picture")], 400),
        ([data_url(png(photo(8, 8)))] * 2, 400),
        ([data_url(png(Image.new("L", (1024, 1024))))], 413),
    ]
    for images, expected in cases:
        status, _, answer = ask(port, "POST", "/v1/images/recipe", {"images": images})
        assert (status, json.loads(answer)["error"]["param"]) == (expected, "image")
    unknown = {"images": [data_url(png(photo(8, 8)))], "n": 1}
    status, _, answer = ask(port, "POST", "/v1/images/recipe", unknown)
    assert (status, json.loads(answer)["error"]["param"]) == (400, "n")


def test_progress_of_both_halves_is_streamed_where_it_is_asked_for(port: int) -> None:
    body = {"prompt": "x", "size": "64x64", "seed": 1, "steps": 3, "n": 2, "stream": True}
    told = events(ask(port, "POST", "/v1/images/generations", body | {"progress": True})[2])
    progress = [event for event in told if event["type"] == "image_generation.progress"]
    for stage, total in (("tokens", None), ("diffusion", 6)):
        done = [event["done"] for event in progress if event["stage"] == stage]
        totals = {event["total"] for event in progress if event["stage"] == stage}
        assert done == sorted(done)
        assert totals == {done[-1]}
        assert total in (None, done[-1])
    quiet = events(ask(port, "POST", "/v1/images/generations", body)[2])
    assert {event["type"] for event in quiet} == {"image_generation.completed"}
    status, _, answer = ask(port, "POST", "/v1/images/generations", {"prompt": "x", "progress": True})
    assert (status, json.loads(answer)["error"]["param"]) == (400, "progress")


def test_a_wider_feather_fades_further_into_the_mask_and_leaves_the_rest(port: int, pipeline: ImagePipeline) -> None:
    picture, mask = photo(64, 64), Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    body = {"images": [data_url(png(picture))], "mask": data_url(png(mask)), "prompt": "x", "seed": 1, "steps": 1}

    def edited(**more: Any) -> np.ndarray:
        answer = json.loads(ask(port, "POST", "/v1/images/edits", body | more)[2])
        assert answer["data"][0]["recipe"]["settings"]["feather"] == more.get("feather", 8)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))).astype(int)

    old, hard, usual, soft = np.asarray(picture).astype(int), edited(feather=0), edited(), edited(feather=24)
    for new in (hard, usual, soft):
        assert (new[:, 32:] == old[:, 32:]).all()
    assert (hard[:, :24] == usual[:, :24]).all()
    difference = [np.abs(new - old)[:, 24:32].mean() for new in (hard, usual, soft)]
    assert difference == sorted(difference, reverse=True)
    status, _, answer = ask(port, "POST", "/v1/images/edits", {**body, "mask": None, "feather": 24})
    assert (status, json.loads(answer)["error"]["param"]) == (400, "feather")


def test_the_model_tells_what_can_be_chosen(port: int, pipeline: ImagePipeline) -> None:
    told = json.loads(ask(port, "GET", "/v1/models")[2])["data"][0]["abilities"]
    made = pipeline.prepare_generation("x", size=tuple(told["size"]))
    assert made.requests[0].size == tuple(reversed(told["size"]))
    assert told["tiers"]["fast"]["steps"] == 5
    assert told["max_pixels"] == 2**18


def test_the_files_of_the_page_are_installed() -> None:
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"server/page/**/*"' in settings
