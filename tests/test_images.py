"""Opening pictures that people have."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from arimage.errors import InputImageError
from arimage.images import open_mask, open_picture
from tests.conftest import photo


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_every_format_is_opened(kind, tmp_path):
    path = tmp_path / "wrongly-named.dat"
    path.write_bytes(encoded(photo(40, 30), kind))
    picture = open_picture(path)
    assert picture.size == (30, 40)
    assert picture.rgb.mode == "RGB"
    assert picture.path == str(path)


def test_the_first_frame_is_used_and_said():
    frames = [photo(20, 20, seed) for seed in (1, 2)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    picture = open_picture(data)
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(frames[0]))
    assert "first is used" in picture.notices[0]


def test_orientation_is_applied_once():
    image, exif = photo(40, 30), Image.Exif()
    exif[0x0112] = 6
    picture = open_picture(encoded(image, "PNG", exif=exif))
    assert picture.size == (40, 30)
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(image.rotate(-90, expand=True)))


def test_sixteen_bits_become_eight():
    values = np.array([[0, 257 * 7, 65535]], np.uint16)
    assert np.asarray(open_picture(encoded(Image.fromarray(values), "PNG")).rgb)[0, :, 0].tolist() == [0, 7, 255]
    floats = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert np.asarray(open_picture(encoded(floats, "TIFF")).rgb)[0, :, 0].tolist() == [0, 128, 255, 0]


def test_transparency_is_kept_apart():
    picture = open_picture(photo(20, 20, mode="RGBA"))
    assert picture.alpha is not None
    assert picture.alpha.mode == "L"
    assert open_picture(photo(20, 20).convert("RGBA")).alpha is None
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    opened = open_picture(encoded(palette, "PNG", transparency=0))
    assert np.asarray(opened.alpha).tolist() == [[0, 255]]


def test_profiles_are_kept_for_rgb_and_dropped_with_a_notice_for_grey():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_picture(encoded(photo(8, 8), "PNG", icc_profile=profile)).icc_profile == profile
    grey = open_picture(encoded(photo(8, 8, mode="L"), "PNG", icc_profile=profile))
    assert grey.icc_profile is None
    assert "profile is dropped" in grey.notices[0]
    assert open_picture(encoded(photo(8, 8, mode="CMYK"), "JPEG")).rgb.mode == "RGB"


def bomb():
    """A PNG that claims 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def hostile():
    """Files that are damaged, mislabelled or malicious, by name."""
    whole = {kind: encoded(photo(60, 50), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")}
    generator = random.Random(0)
    for kind, data in whole.items():
        for share in (0.0, 0.01, 0.1, 0.3, 0.6, 0.9):
            yield f"{kind} cut at {share}", data[: int(len(data) * share)]
        for number in range(30):
            flipped = bytearray(data)
            for _ in range(8):
                flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
            yield f"{kind} flipped {number}", bytes(flipped)
        for number in range(6):
            start = generator.randrange(len(data))
            yield f"{kind} hole {number}", data[:start] + data[start + 40 :]
    yield "bomb", bomb()
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    yield "script", b"#!/bin/sh\nrm -rf /\n"
    yield "pickle", b"\x80\x04\x95rubbish."
    yield "pdf", b"%PDF-1.4 rubbish"
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    for number in range(20):
        yield f"noise {number}", generator.randbytes(generator.randrange(1, 2000))


@pytest.mark.parametrize(("name", "data"), [pytest.param(name, data, id=name) for name, data in hostile()])
def test_bad_files_are_refused_by_name_or_read(name, data, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    try:
        picture = open_picture(path)
    except InputImageError as error:
        message = str(error)
    else:
        message = None
        assert picture.rgb.width * picture.rgb.height < 1e8
    assert message is None or (str(path) in message and "\n" not in message)
    assert message is not None or name.split()[1] in ("flipped", "hole", "cut")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputImageError, match="does not exist"):
        open_picture(tmp_path / "nothing.png")
    with pytest.raises(InputImageError, match="is a folder"):
        open_picture(tmp_path)


def test_large_pictures_are_refused_before_they_are_decoded():
    with pytest.raises(InputImageError, match=r"too many pixels.*3600000000"):
        open_picture(bomb())
    with pytest.raises(InputImageError, match="limit is 100"):
        open_picture(photo(20, 20), max_pixels=100)


def test_masks_are_read_by_brightness_or_by_transparency():
    white = Image.new("L", (4, 2))
    white.paste(255, (0, 0, 2, 2))
    assert np.asarray(open_mask(white, (2, 4)))[0].tolist() == [255, 255, 0, 0]
    assert np.asarray(open_mask(white, (2, 4), "black"))[0].tolist() == [0, 0, 255, 255]
    clear = Image.merge("LA", (Image.new("L", (4, 2), 255), white))
    assert np.asarray(open_mask(clear, (4, 8)))[0].tolist() == [0] * 4 + [255] * 4
