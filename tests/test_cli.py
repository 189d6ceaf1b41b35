"""The command line, in-process where it can be."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arimage.cli.main import run
from arimage.images.opening import open_picture
from arimage.images.provenance import read_recipe
from arimage.inference.results import GeneratedImage
from tests.conftest import photo


@pytest.fixture
def cli(checkpoint_folder, capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=True):
        arguments = [str(argument) for argument in arguments]
        if model and arguments and arguments[0] in ("generate", "edit", "reproduce"):
            arguments += ["--model", str(checkpoint_folder)]
        with pytest.raises(SystemExit) as caught:
            run(arguments)
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return call


QUICK = ("--steps", "1", "--size", "64", "--seed", "1")


def test_generate_writes_a_picture_with_its_recipe(cli):
    code, out, err = cli("generate", "a fox", "-o", "fox.png", *QUICK)
    assert (code, out) == (0, "fox.png\n")
    assert "visual tokens: " in err
    assert "diffusion: 1/1 steps" in err
    assert read_recipe("fox.png").prompt == "a fox"
    code, out, _ = cli("inspect", "fox.png")
    assert "prompt: a fox" in out
    assert json.loads(cli("inspect", "fox.png", "--json")[1])["seed"] == 1


def test_several_pictures_get_numbers_and_a_contact_sheet(cli):
    code, out, _ = cli("generate", "a fox", "-n", "3", "-o", "out/fox.png", "-q", *QUICK)
    assert code == 0
    assert out.split() == ["out/fox-1.png", "out/fox-2.png", "out/fox-3.png", "out/fox-sheet.png"]
    assert [read_recipe(f"out/fox-{i}.png").seed for i in (1, 2, 3)] == [1, 2, 3]
    code, out, _ = cli("generate", "a fox", "-n", "2", "-o", "{seed}-{index}.webp", "-q", *QUICK)
    assert out.split()[:2] == ["1-1.webp", "2-2.webp"]


def test_prompts_come_from_a_file_or_standard_input(cli, monkeypatch):
    Path("prompts.txt").write_text("one\n\n两个\n", encoding="utf-8")
    _, out, _ = cli("generate", "-f", "prompts.txt", "--json", "-q", *QUICK)
    assert [entry["recipe"]["prompt"] for entry in json.loads(out)] == ["one", "两个"]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert cli("generate", "-", "-o", "p.png", "-q", *QUICK)[0] == 0


@pytest.mark.parametrize("command", [("edit", "{}", "blue"), ("generate", "x", "-r", "{}"), ("inspect", "{}")])
def test_a_name_that_is_no_name_is_not_echoed_in_full(cli, command):
    url = "data:image/png;base64," + "A" * 20_000
    code, _, err = cli(*(part.format(url) for part in command))
    err = err.removeprefix(err[: err.index("arimage: ")])
    assert code == 1
    assert err.startswith("arimage: data:image/png;base64,AAAA")
    assert err.count("\n") == 1
    assert len(err) < 200


def test_reproduce_says_whether_every_pixel_is_the_same(cli, tmp_path):
    cli("generate", "a fox", "-o", "fox.png", *QUICK)
    code, out, _ = cli("reproduce", "fox.png")
    assert (code, out) == (0, "identical: every pixel is the same\n")
    changed = Image.open("fox.png")
    info = changed.text["arimage"]
    changed.putpixel((3, 4), (1, 2, 3))
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("arimage", info)
    changed.save("changed.png", pnginfo=text)
    code, out, _ = cli("reproduce", "changed.png")
    assert code == 1
    assert "1 pixels differ" in out


def test_a_console_that_cannot_show_a_character_gets_another_one(cli, monkeypatch):
    """``?`` in text, an escape in JSON; a file name's own bytes where it is no text. Never a failure after the work."""

    def printed(encoding, *arguments):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding))
        code, _, err = cli(*arguments)
        assert code == 0, err
        sys.stdout.flush()
        return raw.getvalue()

    make = ("generate", "猫", "-o", "cat.png", "--no-preview-grid", "-q", *QUICK)
    (entry,) = json.loads(printed("cp1252", *make, "--json"))
    assert entry["recipe"]["prompt"] == "猫"
    assert b"prompt: ?" in printed("cp1252", "inspect", "cat.png")
    assert json.loads(printed("cp1252", "inspect", "cat.png", "--json"))["prompt"] == "猫"
    name = b"caf\xe9.png"
    photo(40, 40).save(os.fsdecode(name))
    assert printed("utf-8", "edit", os.fsdecode(name), "x", "--steps", "1", "-q") == b"caf\xe9-edited.png" + b"\n"


def test_other_peoples_pictures_are_said_to_have_no_recipe(cli):
    photo(20, 20).save("photo.png")
    code, out, _ = cli("inspect", "photo.png")
    assert code == 0
    assert "carries no arimage recipe" in out
    code, _, err = cli("reproduce", "photo.png")
    assert code == 1
    assert "carries no recipe" in err


def test_edit_keeps_what_the_mask_protects(cli):
    photo(70, 50).save("photo.png")
    mask = Image.new("L", (70, 50))
    mask.paste(255, (10, 10, 40, 40))
    mask.save("mask.png")
    code, out, _ = cli("edit", "photo.png", "blue", "--mask", "mask.png", "-o", "out.png", "--steps", "1", "-q")
    assert (code, out) == (0, "out.png\n")
    before, after = np.asarray(Image.open("photo.png")), np.asarray(Image.open("out.png"))
    outside = np.asarray(mask) == 0
    assert (before[outside] != after[outside]).sum() == 0
    assert (before[~outside] != after[~outside]).any()


def masked_photo(name):
    """A photo in a file, a mask of its middle, and where it is protected."""
    photo(70, 50).save(name)
    mask = Image.new("L", (70, 50))
    mask.paste(255, (10, 10, 40, 40))
    mask.save("mask.png")
    return np.asarray(Image.open(name)), np.asarray(mask) == 0


def test_what_a_mask_protects_is_written_without_loss_unless_a_lossy_file_is_asked_for(cli):
    before, protected = masked_photo("photo.jpg")
    edit = ("edit", "photo.jpg", "blue", "--mask", "mask.png", "--steps", "1", "--seed", "1")
    code, out, err = cli(*edit)
    assert (code, out) == (0, "photo-edited.png\n")
    assert "JPEG" not in err
    assert "out/photo.png" in cli(*edit, "-o", "out")[1]
    for name in ("photo-edited.png", "out/photo.png"):
        assert np.array_equal(np.asarray(Image.open(name))[protected], before[protected])
    code, out, err = cli(*edit, "-o", "asked.jpg")
    assert (code, out) == (0, "asked.jpg\n")
    assert "note: asked.jpg is JPEG, which changes every pixel" in err
    code, _, err = cli(*edit, "-o", "asked.webp")
    assert "note: asked" not in err
    assert np.array_equal(np.asarray(Image.open("asked.webp"))[protected], before[protected])
    assert cli("reproduce", "asked.webp", "-q")[1] == "identical: every pixel is the same\n"
    assert "asked-again.jpg is JPEG" in cli("reproduce", "asked.jpg", "-o", "asked-again.jpg")[2]
    assert cli("edit", "photo.jpg", "blue", "--steps", "1", "-q")[1] == "photo-edited.jpg\n"


def test_sixteen_bits_are_kept_of_what_a_mask_protects_and_else_it_is_said(cli):
    _, protected = masked_photo("photo.png")
    values = np.random.default_rng(0).integers(0, 65536, (50, 70), dtype=np.uint16)
    Image.fromarray(values).save("deep.png")
    edit = ("edit", "deep.png", "blue", "--steps", "1", "--seed", "1")
    assert "deep.png has 16 bits a channel, the edited picture 8" in cli(*edit)[2]
    code, _, err = cli(*edit, "--mask", "mask.png", "-o", "out.png")
    assert code == 0
    assert "bits" not in err
    kept = open_picture("out.png", deep=True)
    assert (kept.deep[protected] == values[protected][:, None]).all()
    assert (kept.deep[~protected] != values[~protected][:, None]).any()
    assert cli("reproduce", "out.png", "-q")[1] == "identical: every pixel is the same\n"
    assert "out.webp has 8 bits a channel" in cli(*edit, "--mask", "mask.png", "-o", "out.webp")[2]
    Image.fromarray(values / np.float32(257)).save("floats.tif")
    err = cli("edit", "floats.tif", "blue", "--steps", "1", "--mask", "mask.png", "-o", "floats.png")[2]
    assert "floats.tif has 32 bits a channel, and 8 are kept" in err


@pytest.mark.parametrize(("values", "polarity", "message"), [
    ((0, 0), "white", "its brightness lies in 0..0 of 255, and only above 127"),
    ((50, 100), "white", "its brightness lies in 50..100 of 255, and only above 127 a pixel may change"),
    ((200, 255), "black", "only below 128 a pixel may change; paint what may change black"),
])  # fmt: skip
def test_a_mask_that_protects_everything_is_explained(cli, values, polarity, message):
    photo(8, 8).save("photo.png")
    Image.fromarray(np.resize(np.array(values, np.uint8), (8, 8))).save("mask.png")
    code, _, err = cli("edit", "photo.png", "x", "--mask", "mask.png", "--mask-polarity", polarity)
    assert code == 2
    assert message in err


def test_a_folder_that_is_edited_twice_is_done(cli):
    """Its results are no inputs; a picture of somebody's own is, whatever it is called."""
    for name in ("p1.png", "{3F25-01}.jpg", "own-edited.png"):
        Path("dir{1}").mkdir(exist_ok=True)
        photo(40, 40).save(f"dir{{1}}/{name}")
    edit = ("edit", "dir{1}", "blue", "--steps", "1", "--seed", "1")
    code, out, _ = cli(*edit)
    made = ["dir{1}/own-edited-edited.png", "dir{1}/p1-edited.png", "dir{1}/{3F25-01}-edited.jpg"]
    assert (code, sorted(out.splitlines())) == (0, made)
    listing = sorted(Path("dir{1}").iterdir())
    code, out, err = cli(*edit)
    assert (code, out) == (0, "")
    assert "3 are results of an earlier run, not inputs" in err
    assert "3 of 3 are there already" in err
    assert json.loads(cli(*edit, "--json")[1]) == []
    assert sorted(Path("dir{1}").iterdir()) == listing
    assert cli("edit", made[1], "red", "--steps", "1", "-q")[1] == "dir{1}/p1-edited-edited.png\n"
    code, _, err = cli(*edit, "--no-recipe", "--no-ai-mark")
    assert code == 2
    assert "give them a folder with -o" in err


@pytest.mark.parametrize("command", [
    ["generate", "x", "-n", "3"], ["edit", "photo.png", "x"], ["edit", "photo.png", "photo.png", "x"],
    ["reproduce", "made.png"], ["init", "model.yaml"], ["evaluate", "evaluate.yaml"], ["prepare", "stage.yaml"],
    ["data", "captions", "data"], ["data", "show", "data"], ["data", "words"], ["data", "sprites"],
    ["data", "domain", "evaluate.yaml"], ["assemble", "base", "transformer=other"],
])  # fmt: skip
def test_an_output_that_cannot_be_written_is_refused_before_the_work(cli, command):
    """Nothing else is looked at before: the other files that these commands name are not there."""
    photo(8, 8).save("photo.png")
    code, out, err = cli(*command, "-o", "photo.png/x" if "photo.png" in command[2:] else "photo.png/x.png")
    assert (code, out) == (1, "")
    assert err.startswith("arimage: cannot write photo.png/x")
    assert err.endswith(": Not a directory\n")


def test_a_result_that_its_format_cannot_hold_is_refused_before_the_work(cli):
    """No model is there to be loaded."""
    photo(40, 40).save("photo.jpg")
    Image.new("RGB", (16_400, 8)).save("wide.png")
    for source, *more in (["wide.png"], ["photo.jpg", "--outpaint", "16400", "0", "0", "0"]):
        command = ["edit", source, "x", *more, "-o", "x.webp", "--model", "nowhere"]
        code, out, err = cli(*command, model=False)
        assert (code, out) == (1, "")
        assert err.startswith(f"arimage: cannot write x.webp: {16_440 if more else 16_400}x")
        assert err.endswith("pixels, and WEBP holds 16383 a side; use .png\n")


def test_ctrl_c_in_a_batch_keeps_what_is_finished_and_says_so(cli, monkeypatch):
    """Pressed while the third of four pictures is written; of a folder, and of prompts."""
    Path("in").mkdir()
    for i in range(4):
        photo(40, 40, i).save(f"in/{i}.png")
    save, calls = GeneratedImage.save, []

    def interrupted(self, *arguments, **options):
        calls.append(self)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return save(self, *arguments, **options)

    monkeypatch.setattr(GeneratedImage, "save", interrupted)
    code, out, err = cli("generate", "a", "b", "c", "d", "-o", "{index}.png", "--no-preview-grid", *QUICK)
    assert (code, out.split()) == (130, ["1.png", "2.png"])
    assert err.splitlines()[-1] == "arimage: interrupted: 2 of 4 pictures are written: 1.png, 2.png"
    code, out, err = cli("edit", "in", "x", "-o", "out", "--steps", "1", "--json")
    assert code == 130
    assert [entry["path"] for entry in json.loads(out)] == ["out/0.png", "out/1.png"]
    assert "2 of 4 pictures are written: out/0.png, out/1.png" in err
    assert sorted(path.name for path in Path().glob("*.png")) == ["1.png", "2.png"]
    code, out, _ = cli("edit", "in", "x", "-o", "out", "--steps", "1")
    assert (code, out.split()) == (0, ["out/2.png", "out/3.png"])


def test_a_folder_is_edited_into_a_folder_and_failures_are_told_at_the_end(cli):
    Path("in").mkdir()
    for i in range(3):
        photo(40, 40, i).save(f"in/{i}.png")
    Path("in/bad.jpg").write_bytes(b"rubbish")
    Path("in/notes.txt").write_text("not a picture")
    code, out, err = cli("edit", "in", "blue", "-o", "out", "--steps", "1", "--seed", "1")
    assert code == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "1.png", "2.png"]
    assert len(out.split()) == 3
    assert err.strip().splitlines()[-1].strip().startswith("in/bad.jpg is not a picture")
    code, out, err = cli("edit", "in/*.png", "blue", "-o", "out", "--steps", "1")
    assert (code, out) == (0, "")
    assert "3 of 3 are there already" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate"], 2, "a prompt is missing"),
        (["generate", "x", "--stpes", "3"], 2, "did you mean '--steps'"),
        (["genrate", "x"], 2, "generate"),
        (["generate", "x", "--steps", "many"], 2, "--steps"),
        (["generate", "x", "--steps", "0"], 2, "steps"),
        (["generate", "x", "-n", "0"], 2, "--count"),
        (["generate", "x", "--size", "99"], 2, "multiple of 32"),
        (["generate", "x", "--size", "potrait"], 2, "did you mean 'portrait'"),
        (["generate", "x", "--tier", "quick"], 2, "reference, fast"),
        (["generate", "x", "-o", "x.gif"], 2, "suffix"),
        (["generate", "x", "-o", "{name}.png"], 2, "{index} and {seed}"),
        (["generate", "x", "--seed", "-3"], 2, "seed"),
        (["generate", "x", "--top-p", "0"], 2, "top_p"),
        (["generate", "x", "-f", "missing.txt"], 2, "not both"),
        (["generate", "-f", "missing.txt"], 2, "missing.txt"),
        (["generate", "x", "--reference", "missing.png"], 1, "missing.png does not exist"),
        (["edit", "missing.png", "x"], 1, "missing.png does not exist"),
        (["edit", "missing.png"], 2, "instruction is missing"),
        (["edit", "*.nothing", "x"], 1, "no file matches"),
        (["edit", ".", "x"], 1, "holds no pictures"),
        (["inspect", "missing.png"], 1, "missing.png"),
        (["reproduce", "missing.png"], 1, "missing.png"),
        (["info", "missing"], 1, "not a folder"),
        (["info", "missing.yaml"], 2, "missing.yaml"),
        (["init", "missing.yaml", "-o", "x"], 2, "missing.yaml"),
        ([], 2, ""),
    ],
)
def test_wrong_usage_exits_2_and_failure_1_in_one_line(cli, arguments, code, message):
    got, _, err = cli(*arguments)
    assert got == code
    assert message in err
    assert "Traceback" not in err
    assert not [line for line in err.splitlines() if line and not line.startswith(("arimage: ", "note: "))]
    assert [path.name for path in Path().iterdir()] == []


def test_a_missing_checkpoint_is_explained(cli):
    code, _, err = cli("generate", "x", "--model", "nowhere", *QUICK, model=False)
    assert code == 1
    assert "nowhere is not a folder" in err


def test_debug_shows_the_traceback(cli, checkpoint_folder):
    with pytest.raises(Exception, match="missing"):
        run(["--debug", "edit", "missing.png", "x", "--model", str(checkpoint_folder)])


def test_init_and_info(cli, tmp_path):
    config = Path(__file__).parent.parent / "configs" / "nano" / "model.yaml"
    code, out, _ = cli("init", config, "-o", "start", "text_model.num_hidden_layers=1", "--seed", "3")
    assert (code, out) == (0, "start\n")
    data = json.loads(cli("info", "start", "--json")[1])
    assert data["random_weights"]
    assert data["config"]["text_model"]["num_hidden_layers"] == 1
    assert "diffusion transformer" in cli("info", "start")[1]
    assert cli("init", config, "-o", "start")[0] == 2


OPTIONS = [
    ("--steps", "3", "steps", 3),
    ("--guidance", "2.5", "guidance", 2.5),
    ("--guidance-interval", "0.2 0.7", "guidance_interval", [0.2, 0.7]),
    ("--solver", "ab2", "solver", "ab2"),
    ("--schedule-power", "0.8", "schedule_power", 0.8),
    ("--sigma-min", "0.4", "sigma_min", 0.4),
    ("--dynamic-thresholding", "0.5", "dynamic_thresholding", 0.5),
    ("--negative-text", "HI", "negative_text", "HI"),
    ("--temperature", "0.5", "temperature", 0.5),
    ("--top-p", "0.2", "top_p", 0.2),
    ("--top-k", "1", "top_k", 1),
    ("--min-p", "0.9", "min_p", 0.9),
    ("--token-guidance", "3", "token_guidance", 3.0),
    ("--no-preview-grid", "", "preview_grid", False),
]


@pytest.mark.parametrize(("option", "value", "setting", "recorded"), OPTIONS)
def test_every_option_changes_what_it_says_and_nothing_else(cli, option, value, setting, recorded):
    """The recipe differs in that one setting, and the picture differs."""
    plain = ["generate", 'a sign "OK"', "--size", "64", "--seed", "1", "-q", "--steps", "2", "--guidance", "30", "-o"]
    cli(*plain, "plain.png")
    cli(*plain, "changed.png", option, *value.split())
    before, after = read_recipe("plain.png"), read_recipe("changed.png")
    differing = {name for name in before.settings if before.settings[name] != after.settings[name]}
    assert differing == {setting}
    assert after.settings[setting] == recorded
    assert before.model_copy(update={"settings": {}}) == after.model_copy(update={"settings": {}})
    assert not np.array_equal(np.asarray(Image.open("plain.png")), np.asarray(Image.open("changed.png")))


def start(arguments, folder):
    """A command that minds Ctrl-C, even where the tests run in the background and have it ignored."""
    return subprocess.Popen(
        [sys.executable, "-m", "arimage", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_folder_edit_goes_on_where_it_stopped(cli, checkpoint_folder, tmp_path):
    """Killed twice at some moment: every output is there once, none is cut short."""
    (tmp_path / "in").mkdir()
    for i in range(9):
        photo(64, 64, i).save(tmp_path / "in" / f"{i:02}.png")
    command = ["edit", "in", "blue", "-o", "out", "--steps", "3", "--seed", "1"]
    finished = lambda: list((tmp_path / "out").glob("*.png"))  # noqa: E731
    for least in (1, 3):
        process = start([*command, "--model", str(checkpoint_folder)], tmp_path)
        wait_for(lambda least=least: len(finished()) >= least)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in finished():
            Image.open(path).load()
    assert len(finished()) < 9
    assert cli(*command)[0] == 0
    assert sorted(path.name for path in finished()) == [f"{i:02}.png" for i in range(9)]
    for path in finished():
        Image.open(path).load()
        assert read_recipe(path) is not None


def test_interrupting_leaves_no_half_written_file_and_exits_130(checkpoint_folder, tmp_path):
    photo(64, 64).save(tmp_path / "photo.png")
    command = ["edit", "photo.png", "x", "-o", "out.png", "--steps", "1000", "--model", str(checkpoint_folder)]
    process = start(command, tmp_path)
    assert process.stderr is not None
    assert b"visual tokens" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
