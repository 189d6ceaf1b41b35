"""``arimage serve`` from its start to its end."""

import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from arimage.cli.main import run

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from arimage.server.run import listen


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a server that was started so."""
    with pytest.raises(SystemExit) as caught:
        run(["serve", *arguments])
    assert not isinstance(caught.value.code, str)
    return caught.value.code or 0, capsys.readouterr().err


def test_what_keeps_a_server_from_starting_is_one_line(
    checkpoint_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", str(checkpoint_folder))
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        faults = {
            "choose another port with --port": ended(capsys, *model, "--port", port),
            "nowhere": ended(capsys, "--model", str(tmp_path / "nowhere"), "--port", "0"),
            "--api-key is empty": ended(capsys, *model, "--api-key", " "),
            "http://HOST/v1": ended(capsys, *model, "--rewrite", "chat", "--port", "0"),
        }
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "python_multipart", None)
            faults["python_multipart: pip install 'arimage[serve]'"] = ended(capsys, *model)
    for said, (code, text) in faults.items():
        last = text.strip().splitlines()[-1]
        assert code in (1, 2), last
        assert said in last
        assert "Traceback" not in text


def test_weights_that_cannot_be_read_end_the_server_with_a_line(
    checkpoint_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        from arimage.errors import CheckpointError

        raise CheckpointError("model.safetensors is damaged")

    monkeypatch.setattr("arimage.inference.networks.Networks._load", broken)
    code, text = ended(capsys, "--model", str(checkpoint_folder), "--port", "0", "--quiet")
    assert (code, text) == (1, "arimage: model.safetensors is damaged\n")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_well(
    checkpoint_folder: Path, capsys: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    before = signal.getsignal(sent)

    def send() -> None:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                    break
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.05)
        else:
            return
        os.kill(os.getpid(), sent)

    threading.Thread(target=send, daemon=True).start()
    code, text = ended(capsys, "--model", str(checkpoint_folder), "--port", str(port), "--quiet")
    assert (code, text) == (0, "")
    assert signal.getsignal(sent) is before
