"""``arimage serve`` on loopback, through OpenAI's own client."""

import base64
import http.client
import io
import json
import logging
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arimage.images.provenance import read_recipe
from arimage.inference.pipeline import ImagePipeline
from arimage.inference.rewriting import Rewriter
from arimage.options import TIERS
from tests.chat import Chat
from tests.conftest import photo

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from starlette.datastructures import Headers  # noqa: E402

from arimage.server.config import ServerConfig  # noqa: E402
from arimage.server.gate import Gate  # noqa: E402
from arimage.server.logs import logging_to_stderr  # noqa: E402
from arimage.server.metrics import Metrics  # noqa: E402
from arimage.server.run import is_loopback, listen  # noqa: E402
from arimage.server.worker import Ended, Event, Finished, Job, Partial, Worker  # noqa: E402
from tests.server_thread import KEY, Running, until  # noqa: E402

QUICK = {"steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def running(pipeline: ImagePipeline) -> Iterator[Running]:
    server = Running(
        pipeline,
        api_key=KEY,
        aliases=("gpt-image-2",),
        queue=4,
        max_body=2**20,
        max_pixels=2**18,
        grace=5,
        heartbeat=0.1,
    )
    yield server
    server.close()


class Blocked:
    """Keeps the worker busy until it is released."""

    def __init__(self, worker: Worker, pipeline: ImagePipeline) -> None:
        self.release, self.events = threading.Event(), list[Event]()
        began = threading.Event()

        def emit(event: Event) -> None:
            self.events.append(event)
            if isinstance(event, Finished):
                began.set()
                assert self.release.wait(120)

        worker.submit(Job("blocked", pipeline.prepare_generation("x", size=64, seed=1, steps=1), emit))
        assert began.wait(120)


@pytest.fixture
def blocked(running: Running, pipeline: ImagePipeline) -> Iterator[Blocked]:
    until(lambda: not running.worker.busy)
    block = Blocked(running.worker, pipeline)
    yield block
    block.release.set()
    until(lambda: not running.worker.busy)


def decoded(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    image.load()
    return image


def png(image: Image.Image, name: str = "picture.png") -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return name, buffer.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.mode == other.mode and one.tobytes() == other.tobytes()


def mask_of(width: int, height: int) -> Image.Image:
    """Transparent on the left half."""
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    return mask


def test_a_picture_is_the_one_that_the_library_makes(running: Running, pipeline: ImagePipeline, tmp_path: Path) -> None:
    answer = running.client.images.generate(
        prompt='a sign "OPEN"', model="gpt-image-2", n=2, size="96x64", quality="high", output_format="png",
        response_format="b64_json", background="auto", moderation="low", user="somebody",
        extra_body={**QUICK, "guidance": 2.0, "negative_text": "SHUT"},
    )  # fmt: skip
    alone = pipeline.generate(
        'a sign "OPEN"', size=(96, 64), images_per_prompt=2, steps=2, seed=5, guidance=2.0, negative_text="SHUT"
    )
    assert answer.data is not None
    assert [same(decoded(one.b64_json), two.image) for one, two in zip(answer.data, alone)] == [True, True]
    assert (answer.size, answer.output_format, answer.quality) == ("96x64", "png", "high")
    assert answer.usage is not None
    assert answer.usage.output_tokens == sum(one.codes.numel() + one.preview_codes.numel() for one in alone)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.data[1].recipe["seed"] == 6
    (tmp_path / "one.png").write_bytes(base64.b64decode(answer.data[0].b64_json))
    assert read_recipe(tmp_path / "one.png") == alone[0].recipe


@pytest.mark.parametrize(("quality", "tier"), [("low", "fast"), ("hd", next(iter(TIERS)))])
def test_quality_is_a_tier(running: Running, quality: str, tier: str) -> None:
    answer = running.client.images.generate(prompt="a", size="64x64", quality=quality, extra_body=QUICK)
    assert answer.data[0].recipe["tier"] == tier


@pytest.mark.parametrize(("kind", "name"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_compression_is_of_the_format_that_is_asked_for(running: Running, kind: str, name: str) -> None:
    sizes = []
    for compression in (5, 95):
        answer = running.client.images.generate(
            prompt="a", size="64x64", output_format=kind, output_compression=compression, extra_body=QUICK
        )
        assert decoded(answer.data[0].b64_json).format == name
        sizes.append(len(answer.data[0].b64_json))
    assert sizes[0] < sizes[1]


def test_what_a_mask_protects_is_kept_bit_for_bit(running: Running, pipeline: ImagePipeline) -> None:
    picture, mask = photo(70, 50), mask_of(70, 50)
    answer = running.client.images.edit(
        image=png(picture), mask=png(mask), prompt="a red sky", extra_body={**QUICK, "strength": 0.8}
    )
    made = decoded(answer.data[0].b64_json)
    right = (35, 0, 70, 50)
    assert same(made.crop(right), picture.crop(right))
    assert not same(made, picture)
    alone = pipeline.edit(picture, "a red sky", mask=mask, strength=0.8, steps=2, seed=5)[0]
    assert same(made, alone.image)
    assert answer.usage.input_tokens_details.image_tokens > 0


def test_several_pictures_a_canvas_and_a_variation(running: Running, pipeline: ImagePipeline) -> None:
    one, two = photo(64, 64), photo(96, 64, seed=1)
    both = running.client.images.edit(image=[png(one), png(two)], prompt="both", size="64x96", extra_body=QUICK)
    assert same(
        decoded(both.data[0].b64_json), pipeline.edit([one, two], "both", size=(64, 96), steps=2, seed=5)[0].image
    )
    wider = running.client.images.edit(image=png(one), prompt="more", extra_body={**QUICK, "outpaint": [0, 0, 32, 0]})
    made = decoded(wider.data[0].b64_json)
    assert wider.size == "96x64"
    assert same(made.crop((0, 0, 64, 64)), one)
    url = "data:image/png;base64," + base64.b64encode(png(one)[1]).decode()
    status, answer = running.post_json("/v1/images/variations", {"images": [{"image_url": url}], **QUICK})
    assert status == 200
    assert same(decoded(answer["data"][0]["b64_json"]), pipeline.edit(one, steps=2, seed=5)[0].image)


def test_previews_come_before_the_picture_that_comes_without_them(running: Running) -> None:
    asked: dict[str, Any] = {"prompt": "a fox", "size": "64x64"}
    events = list(
        running.client.images.generate(**asked, stream=True, partial_images=3, extra_body={"steps": 6, "seed": 3})
    )
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert [event.type for event in events] == [partial, partial, partial, completed]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert all(decoded(event.b64_json).format == "PNG" for event in events)
    plain = running.client.images.generate(**asked, extra_body={"steps": 6, "seed": 3})
    assert same(decoded(events[-1].b64_json), decoded(plain.data[0].b64_json))
    assert events[-1].usage.total_tokens == plain.usage.total_tokens


def test_an_edit_streams_under_its_own_name(running: Running) -> None:
    events = list(
        running.client.images.edit(
            image=png(photo(64, 64)), prompt="a", stream=True, partial_images=1, extra_body={"steps": 4, "seed": 1}
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_waiting_stream_is_kept_awake(running: Running, blocked: Blocked) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    body = json.dumps({"prompt": "a", "size": "64x64", "stream": True, **QUICK})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/images/generations", body, headers)
    answer = connection.getresponse()
    assert answer.getheader("content-type", "").startswith("text/event-stream")
    assert answer.readline().startswith(b":")
    blocked.release.set()
    assert b"event: image_generation.completed" in answer.read()


@pytest.mark.parametrize(
    ("field", "value", "param", "code"),
    [
        ("size", "100x64", "size", "invalid_value"),
        ("size", "large", "size", "invalid_value"),
        ("n", 11, "n", "invalid_value"),
        ("n", "2", "n", "invalid_value"),
        ("n", True, "n", "invalid_value"),
        ("model", "dall-e-3", "model", "model_not_found"),
        ("response_format", "url", "response_format", "invalid_value"),
        ("background", "transparent", "background", "invalid_value"),
        ("background", "blue", "background", "invalid_value"),
        ("input_fidelity", "high", "input_fidelity", "invalid_value"),
        ("rewrite", True, "rewrite", "invalid_value"),
        ("\ud800", 1, None, "invalid_value"),
        ("x" * 1000, 1, "x" * 80, "unknown_parameter"),
        ("style", "vivid", "style", "invalid_value"),
        ("output_format", "gif", "output_format", "invalid_value"),
        ("output_compression", 50, "output_compression", "invalid_value"),
        ("partial_images", 2, "partial_images", "invalid_value"),
        ("stesp", 3, "stesp", "unknown_parameter"),
        ("steps", 100_000, "steps", "invalid_value"),
        ("guidance", 0.5, "guidance", "invalid_value"),
        ("seed", -1, "seed", "invalid_value"),
        ("tier", "best", "tier", "invalid_value"),
        ("prompt", "", "prompt", "invalid_value"),
        ("prompt", "\ud800", "prompt", "invalid_value"),
        ("prompt", 5, "prompt", "invalid_value"),
        ("image", "data:,", "image", "unknown_parameter"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(
    running: Running, field: str, value: object, param: str, code: str
) -> None:
    status, answer = running.post_json("/v1/images/generations", {"prompt": "a", "size": "64x64", field: value})
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["type"], answer["error"]["param"]) == ("invalid_request_error", param)
    assert answer["error"]["code"] == code


def test_errors_are_the_clients_own(running: Running) -> None:
    client = running.client
    with pytest.raises(openai.BadRequestError, match="did you mean 'steps'"):
        client.images.generate(prompt="a", extra_body={"stesp": 3})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").images.generate(prompt="a")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").images.edit(image=("a.png", bytes(2**21)), prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=("a.png", b"no picture"), prompt="a")
    assert (caught.value.param, caught.value.code) == ("image", "invalid_image")
    with pytest.raises(openai.BadRequestError, match="not fetched"):
        client.post("/images/edits", body={"prompt": "a", "images": [{"image_url": "http://x/y.png"}]}, cast_to=object)
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(
            image=png(photo(64, 64)), mask=png(photo(64, 64).convert("L").point(lambda _: 0)), prompt="a"
        )
    assert caught.value.param == "mask"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 100_000, b'{"n":' + b"9" * 5000 + b"}", b"\xff"])
def test_broken_json_is_no_fault_of_the_server(running: Running, body: bytes) -> None:
    status, _, answer = running.post("/v1/images/generations", body, **{"Content-Type": "application/json"})
    assert status == 400
    assert json.loads(answer)["error"]["code"] in ("invalid_json", "missing_required_parameter")


def test_other_paths_and_methods_answer_in_the_same_form(running: Running) -> None:
    assert json.loads(running.get("/v1/chat")[1])["error"]["code"] == "not_found"
    status, answer = running.get("/v1/images/edits")
    assert (status, json.loads(answer)["error"]["code"]) == (405, "method_not_allowed")
    status, _, answer = running.post("/v1/nothing", b"", Host="[")
    assert (status, json.loads(answer)["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"nothing of a form"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na'),
        (
            "multipart/form-data; boundary=x; charset=idna",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xff..\r\n--x--\r\n',
        ),
    ],
)
def test_a_broken_form_is_no_fault_of_the_server(running: Running, kind: str, body: bytes) -> None:
    status, _, answer = running.post("/v1/images/edits", body, **{"Content-Type": kind})
    assert status == 400
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_a_long_body_is_refused_however_it_arrives(running: Running) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        running.client.images.edit(image=("a.png", bytes(2**20 + 1)), prompt="a")
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/v1/images/generations", iter([chunk] * 20 + [b"0\r\n\r\n"]), headers)
    assert connection.getresponse().status == 413


def bomb(side: int) -> bytes:
    """The beginning of a PNG of so many pixels; decoding it fails."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


@pytest.mark.parametrize("side", [600, 30_000])
def test_pixels_are_counted_before_they_are_decoded(running: Running, side: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        running.client.images.edit(image=("a.png", bomb(side)), prompt="a")
    assert (caught.value.status_code, caught.value.code) == (413, "too_many_pixels")


def test_pixels_are_those_of_all_pictures_together(running: Running) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        running.client.images.edit(image=[png(photo(400, 400)), ("b.png", bomb(400))], prompt="a")
    assert caught.value.status_code == 413
    with pytest.raises(openai.BadRequestError) as refused:
        running.client.images.edit(image=png(photo(64, 64)), prompt="a", extra_body={"outpaint": [10**6, 0, 0, 0]})
    assert refused.value.param == "outpaint"


def test_a_full_queue_says_when_to_come_back(running: Running, blocked: Blocked, pipeline: ImagePipeline) -> None:
    call = pipeline.prepare_generation("x", size=64, seed=1, steps=1)
    for number in range(4):
        running.worker.submit(Job(f"waits {number}", call, lambda event: None))
    with pytest.raises(openai.RateLimitError, match="queue is full with 5 requests: try again in") as caught:
        running.client.images.generate(prompt="a", size="64x64")
    assert int(caught.value.response.headers["retry-after"]) >= 1
    unread = running.post("/v1/images/edits", bytes(2**19), **{"Content-Type": "multipart/form-data; boundary=x"})
    assert unread[0] == 429
    assert running.figure("arimage_queue_length") == 4


def test_requests_that_wait_together_are_made_together_and_are_the_same(
    running: Running, blocked: Blocked, pipeline: ImagePipeline
) -> None:
    prompts = ["a fox", "two red boats on the sea", 'a sign "GO"']
    batches = running.figure("arimage_token_batches_total")

    def ask(number: int) -> Image.Image:
        answer = running.client.images.generate(
            prompt=prompts[number],
            size=["64x64", "96x64", "64x64"][number],
            extra_body={"steps": 2 + number, "seed": 9},
        )
        return decoded(answer.data[0].b64_json)

    with ThreadPoolExecutor() as pool:
        made = pool.map(ask, range(3))
        until(lambda: running.worker.waiting() == 3)
        blocked.release.set()
        together = list(made)
    assert running.figure("arimage_token_batches_total") == batches + 1
    for number, size in enumerate([(64, 64), (96, 64), (64, 64)]):
        alone = pipeline.generate(prompts[number], size=size, steps=2 + number, seed=9)[0]
        assert same(together[number], alone.image)


def test_a_client_that_goes_away_ends_its_picture(running: Running, blocked: Blocked) -> None:
    """Where it runs and where it waits: neither is finished."""
    body = json.dumps({"prompt": "a", "size": "256x256", "steps": 1000, "seed": 1})
    pictures, cancelled = (running.figure(f"arimage_{name}_total") for name in ("pictures", "cancelled"))
    connections = [http.client.HTTPConnection("127.0.0.1", running.port, timeout=60) for _ in range(2)]
    for number, connection in enumerate(connections):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/images/generations", body, headers)
        until(lambda number=number: running.worker.waiting() == number + 1)
    connections[1].close()
    until(lambda: running.worker.waiting() == 1)
    blocked.release.set()
    until(lambda: running.worker.waiting() == 0)
    connections[0].close()
    until(lambda: not running.worker.busy, seconds=30)
    assert running.figure("arimage_pictures_total") == pictures
    assert running.figure("arimage_cancelled_total") == cancelled + 2


def test_a_cancelled_request_does_not_make_another_step(running: Running, pipeline: ImagePipeline) -> None:
    events: list[Event] = []
    ended = threading.Event()

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Partial):
            job.cancel.set()
        if isinstance(event, Ended):
            ended.set()

    call = pipeline.prepare_generation("a", size=64, seed=1, steps=3)
    job = Job("cancelled", call, emit, partials=3)
    running.worker.submit(job)
    assert ended.wait(120)
    assert [type(event) for event in events] == [Partial, Ended]


def test_health_models_and_metrics(running: Running, pipeline: ImagePipeline) -> None:
    assert running.get("/health/live", key="")[0] == 200
    assert running.get("/health/ready", key="")[0] == 200
    assert running.get("/metrics", key="")[0] == 401
    assert [model.id for model in running.client.models.list()] == [pipeline.checkpoint.name, "gpt-image-2"]
    text = running.get("/metrics")[1]
    for name in ('arimage_stage_seconds_total{stage="diffusion"}', "process_resident_memory_bytes", "arimage_pictures"):
        assert name in text


def test_a_requests_id_comes_back(running: Running) -> None:
    _, headers, _ = running.post("/v1/images/generations", b"{}", **{"x-request-id": "mine-7"})
    assert headers["x-request-id"] == "mine-7"
    _, headers, _ = running.post("/v1/images/generations", b"{}", **{"x-request-id": "a b"})
    assert headers["x-request-id"].startswith("req_")


def test_prompts_are_not_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "arimage.server")
    running.client.images.generate(prompt="a private matter", size="64x64", extra_body=QUICK)
    until(lambda: any(record.getMessage() == "request" for record in caplog.records))
    logged = [getattr(record, "fields", {}) for record in caplog.records]
    assert any(fields.get("status") == 200 and fields.get("pictures") == 1 for fields in logged)
    assert "private" not in str(logged) + caplog.text


def test_the_openapi_document_knows_every_field(running: Running) -> None:
    document = json.loads(running.get("/openapi.json")[1])
    body = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert {"image", "mask", "strength", "outpaint"} <= body["multipart/form-data"]["schema"]["properties"].keys()


def test_stopping_finishes_what_runs_and_refuses_what_waits(pipeline: ImagePipeline, tmp_path: Path) -> None:
    server = Running(pipeline, save=tmp_path, grace=20)
    block = Blocked(server.worker, pipeline)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.client.images.generate, prompt="a", size="64x64", extra_body=QUICK)
        until(lambda: server.worker.waiting() == 1)
        server.server.stop()
        with pytest.raises(openai.InternalServerError) as caught:
            waiting.result(120)
    assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
    block.release.set()
    server.thread.join(120)
    assert not server.thread.is_alive()
    assert [type(event) for event in block.events] == [Finished, Ended]
    assert block.events[-1] == Ended(None)
    assert list(tmp_path.iterdir()) == []


def test_a_request_that_does_not_end_is_ended_after_the_grace(pipeline: ImagePipeline, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    server = Running(pipeline, save=folder, grace=0.2)
    made = server.client.images.generate(
        prompt="a", size="64x64", output_format="jpeg", output_compression=40, extra_body=QUICK
    )
    (saved,) = folder.iterdir()
    assert (saved.suffix, saved.read_bytes()) == (".jpeg", base64.b64decode(made.data[0].b64_json))
    saved.unlink()
    folder.rmdir()
    folder.write_text("no folder any more")
    kept = server.client.images.generate(prompt="a", size="64x64", extra_body=QUICK)
    assert decoded(kept.data[0].b64_json).size == (64, 64)
    assert kept.data[0].notices == ["the server could not save the picture"]
    with ThreadPoolExecutor() as pool:
        long = pool.submit(server.client.images.generate, prompt="a", size="256x256", extra_body={"steps": 1000})
        until(lambda: server.worker.busy)
        server.server.stop()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            long.result(120)
    server.thread.join(120)
    assert not server.thread.is_alive()


def test_a_taken_port_and_a_wrong_host_are_said_in_a_line() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(Exception, match="choose another port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(Exception, match="--host"):
        listen("no such host", 8000)
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")


def test_a_mask_of_numbers_is_as_good_as_a_picture(running: Running) -> None:
    """White may change where nothing is transparent."""
    picture = photo(64, 64)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    answer = running.client.images.edit(
        image=png(picture), mask=png(Image.fromarray(mask)), prompt="a", output_format="webp", extra_body=QUICK
    )
    made = decoded(answer.data[0].b64_json)
    assert same(made.crop((32, 0, 64, 64)), picture.crop((32, 0, 64, 64)))


def test_pages_of_other_origins_are_kept_out(running: Running) -> None:
    """Browsers send a form without asking first."""
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    status, _, answer = running.post("/v1/images/edits", b"--x--", Origin="http://elsewhere", **form)
    assert (status, json.loads(answer)["error"]["code"]) == (403, "origin_not_allowed")
    own = f"http://127.0.0.1:{running.port}"
    assert running.post("/v1/images/edits", b"--x--", Origin=own, **form)[0] == 400


def test_a_page_is_the_servers_own_only_where_nobody_else_can_own_its_name() -> None:
    """A name can be made to lead to this machine (DNS rebinding); what it asks for needs a key then."""

    def known(host: str, **config: Any) -> bool:
        gate = Gate(None, ServerConfig(**config), Metrics(lambda: 0), str)
        return gate._has_known_origin(Headers({"origin": f"http://{host}", "host": host}))

    local = ("127.0.0.1:8000", "[::1]:8000", "localhost", "10.0.0.7", "desktop:8000", "box.local")
    assert [known(host) for host in local] == [True] * 6
    assert [known(host) for host in ("elsewhere.example:8000", "127.0.0.1.example", "", "[")] == [False] * 4
    assert known("elsewhere.example", api_key=KEY)
    assert known("elsewhere.example", cors=("http://elsewhere.example",))


def test_transparency_is_kept_where_a_picture_has_some(running: Running) -> None:
    picture = photo(64, 64, mode="RGBA")
    picture.putalpha(mask_of(64, 64).getchannel("A"))
    edit = running.client.images.edit
    made = edit(image=png(picture), prompt="a", background="transparent", extra_body=QUICK)
    assert (made.background, decoded(made.data[0].b64_json).mode) == ("transparent", "RGBA")
    made = edit(image=png(picture), prompt="a", background="opaque", extra_body=QUICK)
    assert (made.background, decoded(made.data[0].b64_json).mode) == ("opaque", "RGB")
    for refused in ({"image": png(photo(64, 64))}, {"image": png(picture), "output_format": "jpeg"}):
        with pytest.raises(openai.BadRequestError) as caught:
            edit(prompt="a", background="transparent", **refused)
        assert caught.value.param == "background"


def test_a_fault_is_told_without_its_insides_and_the_next_request_is_made(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("of nobody's business")

    client = running.client
    with monkeypatch.context() as patch:
        patch.setattr(running.worker.pipeline.engine, "_diffuse", broken)
        with pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt="a", size="64x64", extra_body=QUICK)
        with pytest.raises(openai.APIError) as streamed:
            list(client.images.generate(prompt="a", size="64x64", stream=True, extra_body=QUICK))
    for error in (caught.value, streamed.value):
        assert "something went wrong here (ValueError)" in error.message
        assert "business" not in str(error.body)
    id_of = caught.value.response.headers["x-request-id"]
    (record,) = (one for one in caplog.records if getattr(one, "fields", {}).get("request_id") == id_of)
    assert record.exc_info
    assert client.images.generate(prompt="a", size="64x64", extra_body=QUICK).data


def test_a_client_that_tries_again_gets_its_picture_when_the_model_is_loaded(
    pipeline: ImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()
    monkeypatch.setattr(Worker, "_load", lambda worker: loaded.wait(60))
    server = Running(pipeline, ready=False)
    try:
        assert server.get("/health/ready")[0] == 503
        with pytest.raises(openai.InternalServerError) as caught:
            server.client.images.generate(prompt="a")
        assert (caught.value.status_code, caught.value.code) == (503, "loading")
        with ThreadPoolExecutor() as pool:
            patient = server.client.with_options(max_retries=4)
            waiting = pool.submit(patient.images.generate, prompt="a", size="64x64", extra_body=QUICK)
            until(lambda: server.figure('arimage_errors_total{code="loading"}') == 2)
            loaded.set()
            assert waiting.result(60).data
    finally:
        loaded.set()
        server.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_fails_leaves_nobody_waiting(pipeline: ImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(batch: object) -> None:
        raise RuntimeError("out of order")

    server = Running(pipeline)
    monkeypatch.setattr(server.worker, "_make", broken)
    with pytest.raises(openai.InternalServerError, match="has failed and ends"):
        server.client.images.generate(prompt="a", size="64x64", extra_body=QUICK)
    server.thread.join(120)
    assert not server.thread.is_alive()
    assert str(server.worker.failure) == "out of order"


def test_the_log_is_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("arimage.server")
    before = log.handlers, log.level, log.propagate
    with logging_to_stderr():
        log.info("request", extra={"fields": {"request_id": "mine", "status": 200}})
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    with logging_to_stderr(quiet=True):
        log.info("request")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["request", "Invalid HTTP request received."]
    assert (lines[0]["request_id"], lines[0]["status"], lines[0]["level"]) == ("mine", 200, "info")
    assert (log.handlers, log.level, log.propagate) == before


def test_rewritten_prompts_are_used_and_told(pipeline: ImagePipeline, chat: Chat) -> None:
    server = Running(pipeline, rewriter=Rewriter(chat.url))
    try:
        chat.answer = 'a large sign that says "GO", at dawn'
        made = server.client.images.generate(prompt='a sign "GO"', size="64x64", extra_body=QUICK)
        assert made.data[0].revised_prompt == made.data[0].recipe["prompt"] == chat.answer
        chat.answer = 'a sign "STOP"'
        kept = server.client.images.generate(prompt='a sign "GO"', size="64x64", extra_body=QUICK)
        assert kept.data[0].revised_prompt == kept.data[0].recipe["prompt"] == 'a sign "GO"'
        assert "quoted texts" in kept.data[0].notices[0]
        asked = chat.asked
        chat.answer = "a sign at night"
        own = server.client.images.generate(prompt="a sign", size="64x64", extra_body={**QUICK, "rewrite": False})
        assert own.data[0].recipe["prompt"] == "a sign"
        assert own.data[0].revised_prompt is None
        assert chat.asked is asked
        edit = server.client.images.edit(image=png(photo(64, 64)), prompt="night", extra_body=QUICK)
        assert edit.data[0].revised_prompt == edit.data[0].recipe["prompt"] == chat.answer
        assert "image editor" in chat.asked["messages"][0]["content"]
    finally:
        server.close()
