"""The snippets of the README and the guides run as they stand, on the embedded model."""

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.embedded import embedded_folder
from arimage.checkpoints.model_config import ModelConfig
from arimage.cli.main import run
from arimage.cli.options_page import options_page
from arimage.cli.python_page import python_page
from tests.conftest import photo

ROOT = Path(__file__).parent.parent
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
SNIPPETS = [ROOT / "README.md", *(guide for guide in GUIDES if guide != TUTORIAL)]
NOT_HERE = (
    "path/to/", "make demo", "make test", "holiday/", "photo.jpg", "data check photos/", "arimage train",
    "arimage evaluate", "arimage benchmark", "arimage serve", "arimage batch",
    "a red fox on a blue background", "fox.png",
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


@pytest.mark.parametrize("code", blocks("python", SNIPPETS))
def test_python_snippets_run(code, folder):
    lines = [line for line in code.splitlines() if not any(part in line for part in NOT_HERE)]
    exec(compile("\n".join(lines), "snippet", "exec"), {})


@pytest.mark.parametrize("text", blocks("console", SNIPPETS))
def test_console_snippets_run(text, folder, capsys):
    for line in text.splitlines():
        command = line.removeprefix("$ ").split("#")[0].strip()
        if not line.startswith("$ arimage") or any(part in command for part in NOT_HERE):
            continue
        with pytest.raises(SystemExit) as caught:
            run(shlex.split(command)[1:])
        assert not caught.value.code, (command, capsys.readouterr().err)


def test_the_tutorial_leads_from_photos_to_a_picture(folder, tmp_path, capsys):
    """Its blocks in order: files are written, code and commands run, at 64 px, with fewer steps than they ask for."""
    (tmp_path / "arimage").symlink_to(ROOT / "arimage")
    (tmp_path / "photos").mkdir()
    for i in range(2):
        photo(320, 288 + 16 * i, seed=i).save(tmp_path / "photos" / f"{i}.jpg")
    fewer = {
        "train": ["steps=1", "batch_size=1", "samples={}", "trackers=[]", "data=[{path: photos, sides: [64]}]"],
        "generate": ["--steps=1", "--size=64"],
    }
    for language, text in re.findall(r"```(\w+)\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL):
        if language == "yaml":
            (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text.replace("seed=1", "seed=1, steps=1, size=64"), "tutorial", "exec"), {})
        else:
            for line in text.splitlines():
                command = shlex.split(line.removeprefix("$ arimage "))
                with pytest.raises(SystemExit) as caught:
                    run(command + fewer.get(command[0], []))
                assert not caught.value.code, (line, capsys.readouterr().err)
    assert sorted(path.name for path in (tmp_path / "photos").glob("*.txt")) == ["0.txt", "1.txt"]
    first, again = (np.asarray(Image.open(tmp_path / name)) for name in ("mia.png", "mia-again.png"))
    assert np.array_equal(first, again)


def test_the_messages_of_troubleshooting_are_those_of_the_code():
    """Each quoted message is a part of one in the code, where an ellipsis stands for what is filled in."""
    messages = [text for name in ("arimage", "decoder", "tokenizer") for text in texts(ROOT / name)]
    quoted = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING.read_text(encoding="utf-8"), re.MULTILINE)
    patterns = {message: re.compile(".*".join(map(re.escape, message.split("…")))) for message in quoted}
    assert len(quoted) > 40
    assert not [message for message, pattern in patterns.items() if not any(map(pattern.search, messages))]


def texts(folder):
    """All texts in the code below a folder; what is filled in is an ellipsis."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_dimensions_in_the_guides_are_those_of_the_models():
    """The released ones are the defaults; the embedded ones are in its folder."""
    released, embedded = ModelConfig(), Checkpoint.open(embedded_folder()).config
    guide = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = [row.split(" | ")[1:] for row in guide.splitlines() if row.count(" | ") == 2]
    for config, column in ((released, 0), (embedded, 1)):
        text, vision, diffusion = config.text_model, config.vision_encoder, config.transformer
        for wanted in (
            (text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.num_key_value_heads),
            (text.vocab_size, text.vision_vocab_size),
            (vision.depth, vision.hidden_size, vision.num_heads),
            (config.quantizer.num_embeddings, config.quantizer.embed_dim),
            (diffusion.text_embed_dim, diffusion.time_embed_dim, diffusion.condition_dim),
            (config.glyph_encoder.num_layers, config.glyph_encoder.d_model, config.glyph_encoder.num_heads),
        ):
            assert ", ".join(map(str, wanted)) in [row[column].removesuffix(" |") for row in rows]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for config in (released, embedded):
        assert f"vocabulary {config.text_model.vocab_size}" in readme
        assert f"of {config.quantizer.num_embeddings}" in readme
        assert f"of width {config.transformer.hidden_size}" in readme


def commands(target, environments):
    """What ``make`` would run for a target, words of each command, with nothing installed."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    call = ["make", "--no-print-directory", "-n", f"ENVIRONMENTS={environments}", target]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.replace("\\\n", "").splitlines()]


def test_every_target_that_the_documents_name_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for file in (ROOT / "README.md", *GUIDES):
        named = re.findall(r"(?:^\$ |^|`)make ([a-z]+)(?=`|\s*#|$)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, file.name


def test_make_demo_installs_into_a_fresh_environment_and_makes_demo_png(tmp_path, monkeypatch, capsys):
    create, install, *_, generate = commands("demo", tmp_path / "fresh")
    assert create[1:] == ["-m", "venv", f"{tmp_path}/fresh/demo"]
    assert install[0] == f"{tmp_path}/fresh/demo/bin/pip"
    assert install[-4:] == ["-c", "constraints.txt", "-e", "."]
    assert generate[0] == f"{tmp_path}/fresh/demo/bin/arimage"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run([*generate[1:], "--steps", "2"])
    assert not caught.value.code, capsys.readouterr().err
    assert Image.open("demo.png").size == (256, 256)


def test_make_test_checks_style_types_and_tests_in_a_fresh_environment(tmp_path):
    create, install, *rest = commands("test", tmp_path / "fresh")
    assert create[1:] == ["-m", "venv", f"{tmp_path}/fresh/test"]
    assert install[-4:] == ["-c", "constraints.txt", "-e", ".[dev]"]
    inside = f"{tmp_path}/fresh/test/bin"
    for checked in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        assert [f"{inside}/{checked[0]}", *checked[1:]] in rest
    tests = rest[-1]
    assert tests[:2] == [f"{inside}/mypy", "&"]
    assert tests[-5:] == ["wait", "$types", "&&", "exit", "$tests"]
    assert tests[tests.index(f"{inside}/python") :][1:4] == ["-m", "pytest", "tests"]
    assert "--durations=10;" in tests


def test_the_page_of_options_is_up_to_date():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options_page()


def test_the_page_of_the_python_interface_is_up_to_date():
    assert (ROOT / "docs" / "python.md").read_text(encoding="utf-8") == python_page()


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
