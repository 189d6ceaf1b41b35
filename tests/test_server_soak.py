"""The benchmark of the server, on a small model: a soak in short, and a process that is killed."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # they are scripts, which import each other
serving = importlib.import_module("serving")


def test_a_soak_loses_nothing_and_a_killed_server_starts_again(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--device", "cpu", "--size", "64", "--requests", "12", "--repeats", "1", "--clients", "1", "2")
    monkeypatch.setattr(sys, "argv", ["serving.py", str(checkpoint_folder), *small, "-o", str(tmp_path / "r.json")])
    monkeypatch.setattr(serving, "FLAT", 2.0)  # the memory of a process that has just begun still grows
    code = serving.main()
    shown = capsys.readouterr().out
    assert code == 0, shown
    results = json.loads((tmp_path / "r.json").read_text())
    soak, killed = results["soak"], results["killed"]
    assert (soak["lost"], soak["different"], soak["refused"]) == ([], [], 1)
    assert soak["finished"] + soak["cancelled"] == 11
    assert soak["finished"] >= 4
    assert killed["client_is_told"] == "APIConnectionError"
    assert killed["same_picture"]
    assert [row["clients"] for row in results["load"]] == [1, 2]
    assert "| clients | requests/s |" in shown
