"""What an application passes around as a picture is taken; the rest is refused in one line that is short."""

import base64
import io
import warnings

import numpy as np
import pytest
from PIL import Image

import arimage
from arimage.errors import ArimageError, InputImageError, UsageError
from arimage.images.opening import open_mask, open_picture
from arimage.images.provenance import read_recipe
from tests.conftest import photo

FAST = {"steps": 1, "size": 64, "seed": 1}
BARE = {**FAST, "preview_grid": False}


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = photo(40, 30)
DATA = png(PHOTO)
URL = "data:image/png;base64," + base64.b64encode(DATA).decode()


class Stream(io.RawIOBase):
    """What cannot be turned back, as a socket cannot."""

    def __init__(self, data):
        self.left = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.left.readinto(buffer)


def at_its_end():
    file = io.BytesIO()
    file.write(DATA)
    return file


@pytest.mark.parametrize(
    "source",
    [
        PHOTO, DATA, bytearray(DATA), memoryview(DATA), io.BytesIO(DATA), at_its_end(), Stream(DATA),
        URL, URL.replace("+", "%2B"), URL.replace("base64,", "base64,\n"), np.asarray(PHOTO),
        np.asarray(PHOTO)[:, ::-1][:, ::-1], np.asarray(PHOTO) / 255, (np.asarray(PHOTO) / 255).astype(np.float32),
        np.asarray(PHOTO).astype(np.uint16) * 257, open_picture(PHOTO),
    ],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_everything_that_stands_for_a_picture_is_the_same_picture(source):
    assert np.array_equal(np.asarray(open_picture(source).rgb), np.asarray(PHOTO))


def test_paths_and_open_files_are_the_same_picture(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        for source in (path, str(path), file, file):
            assert np.array_equal(np.asarray(open_picture(source).rgb), np.asarray(PHOTO))
    assert open_picture(str(path)).path == str(path)


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (np.full((6, 4), 7, np.uint8), "RGB"),
        (np.full((6, 4, 1), 7, np.uint8), "RGB"),
        (np.full((6, 4, 2), 7, np.uint8), "RGBA"),
        (np.full((6, 4, 4), 7, np.uint8), "RGBA"),
        (np.full((6, 4, 4), 7 / 255), "RGBA"),
        (np.full((6, 4), 7 * 257, np.uint16), "RGB"),
        (np.full((6, 4), 7 * 257, ">u2"), "RGB"),
        (np.full((6, 4, 4), 7 * 257, np.uint16), "RGBA"),
    ],
)
def test_arrays_are_height_width_channels(array, mode):
    picture = open_picture(array)
    assert picture.size == (6, 4)
    assert np.unique(np.asarray(picture.rgb)).tolist() == [7]
    assert (picture.alpha is not None) == (mode == "RGBA")


def test_masks_are_taken_like_pictures():
    drawn = np.zeros((30, 40), bool)
    drawn[:, 20:] = True
    grey = drawn.astype(np.uint8) * 255
    for mask in (drawn, grey, drawn.astype(np.float32), grey[..., None], io.BytesIO(png(Image.fromarray(grey)))):
        assert np.array_equal(np.asarray(open_mask(mask, (30, 40))), grey)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (None, UsageError, "got None"),
        (7, UsageError, "got int"),
        ({"image": DATA}, UsageError, "got dict"),
        ("", UsageError, "empty text"),
        ("https://example.org/x.png", InputImageError, "is an address, and nothing is downloaded"),
        (io.StringIO("text"), UsageError, "mode 'rb'"),
        (np.zeros((6, 4), np.int64), UsageError, "int64; use uint8"),
        (np.zeros((6, 4, 3), np.complex64), UsageError, "complex64"),
        (np.array([["x"]]), UsageError, "array of <U1"),
        (np.array([[None]]), UsageError, "array of object"),
        (np.zeros((3, 64, 48), np.uint8), UsageError, "transpose(1, 2, 0)"),
        (np.zeros((2, 64, 48, 3), np.uint8), UsageError, "one by one"),
        (np.zeros(9, np.uint8), UsageError, "shape (9,)"),
        (np.zeros((0, 4, 3), np.uint8), UsageError, "shape (0, 4, 3)"),
        (np.full((6, 4), 255.0), InputImageError, "between 255 and 255; floats must lie in 0 to 1"),
        (np.full((6, 4), -0.5), InputImageError, "0 to 1"),
        (np.full((6, 4), np.nan), InputImageError, "0 to 1"),
        (io.BytesIO(), InputImageError, "the picture is not a picture in a known format"),
        (bytearray(b"rubbish"), InputImageError, "the picture is not a picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", InputImageError, "git lfs pull"),
        ("data:image/png;base64", InputImageError, "without a comma"),
        (URL.replace("A", "*", 40), InputImageError, "broken base64"),
        (URL[: len(URL) // 2], InputImageError, ""),
        ("data:text/plain,hello", InputImageError, "not a picture"),
        (URL.removeprefix("data:image/png;base64,") * 20, InputImageError, "characters) "),
        ("x" * 20_000, InputImageError, "characters) "),
        ("a\0b.png", InputImageError, r"a\x00b.png cannot be read"),
        ("two\nlines.png", InputImageError, r"two\nlines.png does not exist"),
    ],
    ids=lambda value: f"{value!r:.20}" if not isinstance(value, type) else value.__name__,
)  # fmt: skip
def test_anything_else_is_refused_in_one_short_line(source, kind, message):
    with pytest.raises(kind) as caught:
        open_picture(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_files_that_cannot_be_read_are_named():
    file = io.BytesIO(DATA)
    file.close()
    with pytest.raises(InputImageError, match="closed file"):
        open_picture(file)

    class Upload:
        async def read(self):
            return DATA

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match="Upload that reads asynchronously: await"):
            open_picture(Upload())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.edit(None, "x"), "the picture must be a path"),
        (lambda p: p.edit([PHOTO, None], "x"), "picture 2 must be a path"),
        (lambda p: p.edit([[PHOTO]], "x"), "the picture must be a path, bytes.*got list"),
        (lambda p: p.edit([PHOTO, b"y"], "x"), "picture 2 is not a picture"),
        (lambda p: p.edit(PHOTO, "x", mask=b"y"), "the mask is not a picture"),
        (lambda p: p.edit(PHOTO, "x", mask=7), "the mask must be a path"),
        (lambda p: p.generate("x", references=[None]), "the reference must be a path"),
        (lambda p: p.generate("x", references=[PHOTO, 3.5]), "reference 2 must be a path"),
        (lambda p: p.generate("x", references=5), "the reference must be a path.*got int"),
        (lambda p: p.generate(None), "prompt must be a text"),
        (lambda p: p.generate(5), "prompt must be a text"),
    ],
)
def test_a_call_says_which_input_is_wrong(pipeline, call, message):
    with pytest.raises(ArimageError, match=message) as caught:
        call(pipeline)
    assert "\n" not in str(caught.value)


def test_calls_take_them_all_and_results_of_calls(pipeline):
    kinds = [PHOTO, np.asarray(PHOTO), io.BytesIO(DATA), URL, iter([DATA])]
    mask = np.zeros((30, 40), np.float32)
    mask[:, :20] = 1
    made = [pipeline.edit(kind, "blue", mask=mask, steps=1, seed=1)[0] for kind in kinds]
    assert len({one.recipe.references[0].sha256 for one in made}) == 1
    assert all(np.array_equal(np.asarray(one.image), np.asarray(made[0].image)) for one in made)
    again = pipeline.edit(made[0], "red", mask=Stream(png(Image.fromarray(mask > 0))), steps=1, seed=2)[0]
    assert np.array_equal(np.asarray(again.image)[:, 20:], np.asarray(PHOTO)[:, 20:])
    alone = pipeline.generate("x", references=np.asarray(PHOTO), **FAST)[0]
    listed = pipeline.generate("x", references=[DATA], **FAST)[0]
    assert np.array_equal(np.asarray(alone.image), np.asarray(listed.image))
    assert pipeline.generate("x", references=None, **BARE)[0].recipe.references == ()


def test_the_bytes_of_a_picture_carry_its_recipe(pipeline, tmp_path):
    made = pipeline.generate("x", **BARE)[0]
    for name in ("png", "jpeg", "webp"):
        data = made.to_bytes(name)
        assert data == made.save(tmp_path / f"x.{name}").read_bytes()
        assert read_recipe(io.BytesIO(data)) == made.recipe
        assert read_recipe(io.BytesIO(made.to_bytes(name, recipe=False))) is None
    assert made.to_bytes() == made._repr_png_() == made.to_bytes("PNG")
    with pytest.raises(UsageError, match="format must be one of png, jpg, jpeg, webp"):
        made.to_bytes("gif")


def test_the_package_takes_what_a_pipeline_takes(pipeline):
    assert arimage.edit(np.asarray(PHOTO), "x", model=pipeline, steps=1)[0].image.size == (40, 30)
