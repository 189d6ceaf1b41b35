"""A server in a thread, for tests."""

import http.client
import json
import threading
import time
from typing import Any

import openai

from arimage.inference.pipeline import ImagePipeline
from arimage.server.config import ServerConfig
from arimage.server.run import Server, listen

KEY = "secret"


def until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


class Running:
    """A server in a thread."""

    def __init__(self, pipeline: ImagePipeline, port: int = 0, ready: bool = True, **config: Any) -> None:
        self.server = Server(pipeline, ServerConfig(**config))
        self.worker = self.server.worker
        listening = listen("127.0.0.1", port)
        self.port = listening.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_on, args=(listening,))
        self.thread.start()
        until(lambda: self.worker.state == "ready" or not ready)
        key = config.get("api_key") or "none"
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, body, {"Authorization": f"Bearer {KEY}", **headers})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def post_json(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        status, _, answer = self.post(path, json.dumps(body).encode(), **{"Content-Type": "application/json"})
        return status, json.loads(answer)

    def get(self, path: str, key: str = KEY) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def figure(self, name: str) -> float:
        lines = self.get("/metrics")[1].splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def close(self) -> None:
        self.server.stop()
        self.thread.join(120)
        assert not self.thread.is_alive()
