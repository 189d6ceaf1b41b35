"""What the OpenAPI document describes, and much that it does not allow, sent to a server: none of it is its fault."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from arimage.inference.pipeline import ImagePipeline

pytest.importorskip("fastapi")
pytest.importorskip("openai")
schemathesis = pytest.importorskip("schemathesis")

import requests  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402

from tests.server_thread import Running  # noqa: E402

EXAMPLES = 8  # of each kind of body of each operation


@pytest.fixture(scope="module")
def running(pipeline: ImagePipeline) -> Iterator[Running]:
    server = Running(pipeline, grace=1)
    yield server
    server.close()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_nothing_that_a_client_sends_is_a_fault_of_the_server(running: Running, mode: Any) -> None:
    document = schemathesis.openapi.from_dict(json.loads(running.get("/openapi.json")[1]))
    session = requests.Session()
    session.trust_env = False
    tried: list[str] = []

    def send(case: Any) -> None:
        if isinstance(case.body, dict):  # otherwise most of the time is spent on pictures
            case.body = {**case.body, "steps": 1, "n": 1}
        answer = case.call(base_url=f"http://127.0.0.1:{running.port}", session=session, timeout=60)
        assert answer.status_code < 500, f"{case.method} {case.path}: {answer.status_code} {answer.text:.300}"
        tried.append(case.method)

    for result in document.get_all_operations():
        operation = result.ok()
        if mode.is_negative and not operation.body:
            continue  # nothing of it can be wrong
        strategy = operation.as_strategy(generation_mode=mode)
        bounded = settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        bounded(given(strategy)(send))()
    assert tried.count("POST") > EXAMPLES
    assert running.worker.failure is None
