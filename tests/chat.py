"""A chat endpoint with OpenAI's interface, which says what a test has it say."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Chat:
    """Listens on loopback; ``answer`` is what it says, ``asked`` what it was asked last, ``count`` how often."""

    def __init__(self) -> None:
        self.answer: object = ""
        self.ended = "stop"
        self.status, self.count = 200, 0
        self.asked: dict = {}
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                chat.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                chat.count += 1
                choice = {"message": {"content": chat.answer}, "finish_reason": chat.ended}
                body = json.dumps({"choices": [choice]}).encode()
                self.send_response(chat.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
