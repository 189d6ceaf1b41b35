"""The snippets of the README and the guides run as they stand, on the embedded model."""

import re
import shlex
from pathlib import Path

import pytest

from arimage.cli.main import run
from arimage.cli.reference import reference

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md"))
NOT_HERE = (
    "path/to/", "make demo", "make test", "holiday/", "photo.jpg", "data check photos/", "arimage train",
    "arimage evaluate", "a red fox on a blue background", "fox.png",
)  # fmt: skip


def blocks(language, files):
    return list(_blocks(language, files))


def _blocks(language, files):
    for file in files:
        for i, text in enumerate(re.findall(rf"```{language}\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)):
            yield pytest.param(text, id=f"{file.name}-{i}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", blocks("python", [ROOT / "README.md", *GUIDES]))
def test_python_snippets_run(code, folder):
    lines = [line for line in code.splitlines() if not any(part in line for part in NOT_HERE)]
    exec(compile("\n".join(lines), "snippet", "exec"), {})


@pytest.mark.parametrize("text", blocks("console", [ROOT / "README.md", *GUIDES]))
def test_console_snippets_run(text, folder, capsys):
    for line in text.splitlines():
        command = line.removeprefix("$ ").split("#")[0].strip()
        if not line.startswith("$ arimage") or any(part in command for part in NOT_HERE):
            continue
        with pytest.raises(SystemExit) as caught:
            run(shlex.split(command)[1:])
        assert not caught.value.code, (command, capsys.readouterr().err)


def test_the_option_reference_is_up_to_date():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("file", [ROOT / "README.md", *GUIDES], ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", file.read_text(encoding="utf-8"))
    inside = [target for pair in targets for target in pair if target and not target.startswith("http")]
    assert not [target for target in inside if not (file.parent / target).exists()]


@pytest.mark.parametrize("file", [ROOT / "README.md", *GUIDES], ids=lambda file: file.name)
def test_links_to_headings_lead_to_one(file):
    targets = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", file.read_text(encoding="utf-8"))
    missing = [
        f"{name}#{anchor}" for name, anchor in targets if anchor not in anchors(file.parent / name if name else file)
    ]
    assert not missing


def anchors(file):
    """What GitHub calls the headings of a file."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
