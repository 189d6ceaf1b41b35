"""What pictures say to other programs about how they were made, and what those say to us."""

import io
import json
import time

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from arimage.cli.main import run
from arimage.errors import ArimageError, UsageError
from arimage.images.parameters import Parameters, parameters_text, parse_parameters
from arimage.images.provenance import described_by, read_origin, read_recipe
from arimage.images.recipe import Recipe
from arimage.images.writing import encode_picture, save_picture

# As the web interface of AUTOMATIC1111 writes it (1.10): one line of settings, prompts of several lines as they are.
THEIRS = (
    "girl with an artist's beret, ((eyeshadow)), <lora:ink:0.8>\n"
    "\n"
    "BREAK desert: scene\n"
    "Negative prompt: ugly, (((deformed))),\n"
    "blurry\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, "
    'Model hash: 45dee52b, Model: sd v1.5, Lora hashes: "ink: 3a4f, pen: 99", Version: v1.10.1'
)
READ = Parameters(
    prompt="girl with an artist's beret, ((eyeshadow)), <lora:ink:0.8>\n\nBREAK desert: scene",
    negative_prompt="ugly, (((deformed))),\nblurry",
    seed=965400086,
    size=(512, 768),
    steps=20,
    guidance=7.5,
    others={
        "Sampler": "DPM++ 2M", "Schedule type": "Karras", "Model hash": "45dee52b", "Model": "sd v1.5",
        "Lora hashes": "ink: 3a4f, pen: 99", "Version": "v1.10.1",
    },
)  # fmt: skip


def recipe(**changed):
    values = {
        "arimage": "0.1.0", "model": "a, model: one", "weights_sha256": "0123456789abcdef" * 4, "random_weights": False,
        "task": "generate", "prompt": "a red fox\n写着“你好”", "seed": 7, "size": (256, 192), "output_size": (256, 192),
        "settings": {"steps": 5, "guidance": 1.5, "solver": "ab2", "strength": 1.0, "negative_text": "NO: WAY"},
        "tier": "fast", "device": "cpu", "dtype": "float32", "torch": "2.13.0",
    }  # fmt: skip
    return Recipe(**values | changed)


def comment(text, order):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode(order)
    return exif


def foreign(kind, text=THEIRS, order="utf-16-be"):
    """The file of a picture of another program."""
    buffer = io.BytesIO()
    options = {}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("parameters", text)
    else:
        options["exif"] = comment(text, order)
    Image.new("RGB", (64, 64), "red").save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_recipe_is_written_as_other_programs_read_it():
    assert parameters_text(recipe()) == (
        "a red fox\n写着“你好”\nNegative prompt: NO: WAY\n"
        "Steps: 5, Sampler: ab2, CFG scale: 1.5, Seed: 7, Size: 256x192, Model hash: 0123456789, "
        'Model: "a, model: one", Version: arimage 0.1.0'
    )
    edited = recipe(prompt="", settings={"steps": 5, "guidance": 1.0, "solver": "euler", "strength": 0.5})
    assert parameters_text(edited).startswith("Steps: 5, Sampler: euler, CFG scale: 1.0, Seed: 7, ")
    assert "Denoising strength: 0.5" in parameters_text(edited)
    read = parse_parameters(parameters_text(recipe()))
    assert (read.prompt, read.negative_prompt, read.seed) == ("a red fox\n写着“你好”", "NO: WAY", 7)
    assert (read.size, read.steps, read.guidance) == ((256, 192), 5, 1.5)
    assert read.others["Model"] == "a, model: one"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_format_carries_both(kind, tmp_path):
    """The recipe for us, word for word, and the parameters where other programs look for them."""
    contents = encode_picture(Image.new("RGB", (64, 64), "red"), kind, recipe(prompt="<a> & 'b' ]]> 文字"))
    assert read_recipe(io.BytesIO(contents)) == recipe(prompt="<a> & 'b' ]]> 文字")
    image = Image.open(io.BytesIO(contents))
    if kind == "PNG":
        text = image.info["parameters"]
    else:
        raw = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        assert raw[:8] == b"UNICODE\0"
        text = raw[8:].decode("utf-16-be")
    assert text == parameters_text(recipe(prompt="<a> & 'b' ]]> 文字"))
    bare = encode_picture(Image.new("RGB", (64, 64), "red"), kind, ai_mark=None)
    assert b"Steps" not in bare
    assert read_origin(bare).recipe is None
    assert read_origin(bare).parameters is None


def test_the_chunk_of_a_plain_prompt_is_of_the_kind_that_every_reader_knows():
    for prompt, chunk in (("a red fox, café", b"tEXtparameters\0"), ("文字", b"iTXtparameters\0")):
        contents = encode_picture(Image.new("RGB", (8, 8)), "PNG", recipe(prompt=prompt))
        assert chunk in contents
        assert Image.open(io.BytesIO(contents)).info["parameters"].startswith(prompt)


def test_a_prompt_too_long_for_other_programs_is_kept_for_us():
    long = recipe(prompt="word " * 8000)
    contents = encode_picture(Image.new("RGB", (8, 8)), "JPEG", long)
    assert read_recipe(io.BytesIO(contents)) == long
    assert b"UNICODE" not in contents


def test_recipes_of_once_are_read_from_the_exif_comment():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + recipe().to_json().encode()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", exif=exif)
    assert read_recipe(io.BytesIO(buffer.getvalue())) == recipe()


@pytest.mark.parametrize(("kind", "order"), [("PNG", ""), ("JPEG", "utf-16-be"), ("WEBP", "utf-16-be"),
                                             ("JPEG", "utf-16-le"), ("JPEG", "utf-16")])  # fmt: skip
def test_pictures_of_other_programs_are_read(kind, order):
    origin = read_origin(foreign(kind, order=order))
    assert (origin.recipe, origin.parameters) == (None, READ)
    assert described_by(foreign(kind, order=order)) == READ.prompt


@pytest.mark.parametrize("text", ["", "a photo of my cat", "Steps: 3, Seed: 4", "a\nNegative prompt: b", '{"a": 1}'])
def test_a_text_without_a_line_of_settings_is_none_of_theirs(text):
    assert parse_parameters(text) is None
    assert read_origin(foreign("JPEG", text)).parameters is None


@pytest.mark.parametrize("text", ["a " * 300_000, "a:" * 300_000, '"' * 300_000, "Seed: " * 100_000 + "\\"])
def test_long_texts_are_read_in_no_time(text):
    began = time.process_time()
    parse_parameters(text)
    assert time.process_time() - began < 2


def test_what_makes_no_sense_in_parameters_is_left_out():
    read = parse_parameters('x\nSteps: many, CFG scale: high, Seed: -1, Size: big, Model: "a')
    assert (read.steps, read.guidance, read.seed, read.size) == (None, None, -1, None)


def test_inspect_shows_them_and_reproduce_says_why_it_cannot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.png").write_bytes(foreign("PNG"))
    save_picture(Image.new("RGB", (64, 64)), "ours.png", recipe())

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            run(list(arguments))
        return ended.value.code or 0, *capsys.readouterr()

    _, out, _ = command("inspect", "theirs.png")
    assert out.startswith("theirs.png was made by another program, whose parameters are:\nprompt: girl with")
    assert "\nseed: 965400086\n" in out
    assert json.loads(command("inspect", "theirs.png", "--json")[1])["parameters"]["size"] == [512, 768]
    assert json.loads(command("inspect", "ours.png", "--json")[1])["seed"] == 7
    code, _, err = command("reproduce", "theirs.png")
    assert code == 1
    assert err.count("\n") == 1
    assert "theirs.png was made by another program, so it cannot be made again here" in err


def test_a_picture_that_does_not_say_what_it_shows_is_told(tmp_path):
    with pytest.raises(UsageError, match="the picture carries no recipe that would say what it shows: give prompt"):
        described_by(Image.new("RGB", (8, 8)))
    with pytest.raises(UsageError, match="was edited"):
        described_by(recipe(task="edit"))
    with pytest.raises(ArimageError, match=r"nowhere\.png does not exist"):
        described_by(tmp_path / "nowhere.png")
