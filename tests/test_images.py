"""Opening pictures that people have."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from arimage.errors import InputImageError
from arimage.images.opening import open_mask, open_picture
from arimage.images.sixteen_bits import encode_png
from arimage.images.sizes import enlarged, resized
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


def sixteen(channels, height=21, width=17):
    return np.random.default_rng(channels).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def sixteen_bit_png(values):
    """By OpenCV, of (H, W, 1, 3 or 4)."""
    cv2 = pytest.importorskip("cv2")
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[-1]]
    return cv2.imencode(".png", values[..., order])[1].tobytes()


def sixteen_bit_tiff(values, **options):
    buffer = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(buffer, values, photometric="rgb", **options)
    return buffer.getvalue()


def grey_and_alpha_png(values):
    """A PNG of 16 bits grey and alpha, which neither of the others writes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_sixteen_bits_of_a_file_are_read(channels):
    values = sixteen(channels)
    files = [grey_and_alpha_png(values)] if channels == 2 else [sixteen_bit_png(values)]
    if channels > 2:
        more = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        for options in ({}, {"byteorder": ">"}, {"compression": "zlib", "predictor": 2}, {"tile": (16, 16)}):
            files.append(sixteen_bit_tiff(values, **options, **more))
    grey = channels < 3
    for data in files:
        picture = open_picture(data, deep=True)
        assert picture.bits == 16
        assert np.array_equal(picture.deep[..., :3], np.repeat(values[..., :1], 3, -1) if grey else values[..., :3])
        assert (picture.alpha is not None) == (channels in (2, 4))
        assert picture.alpha is None or np.array_equal(picture.deep[..., 3], values[..., -1])
        assert open_picture(data).deep is None


def test_sixteen_bits_are_turned_upright_with_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = sixteen(1)
    picture = open_picture(encoded(Image.fromarray(values[..., 0]), "PNG", exif=exif), deep=True)
    assert np.array_equal(picture.deep[..., 0], np.rot90(values[..., 0], -1))
    text = PngImagePlugin.PngInfo()
    text.add(b"eXIf", exif.tobytes()[6:])
    coloured = encode_png(sixteen(3), text)
    assert np.array_equal(open_picture(coloured, deep=True).deep, np.rot90(sixteen(3), -1))


def test_sixteen_bits_that_cannot_be_read_are_known_of():
    """Pillow gives them for no premultiplied alpha and no channels apart; those uncompressed it would even misread."""
    for options in ({"extrasamples": ["assocalpha"]}, {"planarconfig": "separate", "compression": "zlib"}):
        values = sixteen(4 if "extrasamples" in options else 3)
        values = values.transpose(2, 0, 1).copy() if "planarconfig" in options else values
        picture = open_picture(sixteen_bit_tiff(values, **options), deep=True)
        assert (picture.bits, picture.deep) == (16, None)
    apart = sixteen_bit_tiff(sixteen(3).transpose(2, 0, 1).copy(), planarconfig="separate")
    with pytest.raises(InputImageError, match=r"channels apart.*save it as PNG"):
        open_picture(apart)
    opened = open_picture(Image.open(io.BytesIO(sixteen_bit_png(sixteen(3)))), deep=True)
    assert (opened.bits, opened.deep) == (16, None)
    assert open_picture(photo(8, 8), deep=True).deep is None


def test_damaged_files_of_sixteen_bits_are_refused_or_read():
    generator = random.Random(0)
    for data in (sixteen_bit_png(sixteen(3)), grey_and_alpha_png(sixteen(2)), sixteen_bit_tiff(sixteen(3))):
        for _ in range(60):
            broken = bytearray(data[: generator.randrange(len(data) // 2, len(data))])
            broken[generator.randrange(len(broken))] ^= 1 << generator.randrange(8)
            try:
                picture = open_picture(bytes(broken), deep=True)
            except InputImageError:
                continue
            assert picture.deep is None or picture.deep.shape[:2] == picture.size


@pytest.mark.parametrize("channels", [3, 4])
def test_pngs_of_sixteen_bits_are_written(channels):
    cv2 = pytest.importorskip("cv2")
    values, profile = sixteen(channels), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("arimage", "文字")
    data = encode_png(values, text, profile)
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read[..., [2, 1, 0, 3][:channels]], values)
    assert np.array_equal(open_picture(data, deep=True).deep, values)
    assert open_picture(data).icc_profile == profile
    assert Image.open(io.BytesIO(data)).info["arimage"] == "文字"


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


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("dtype", "high"), [("uint8", 1), ("uint8", 90), ("uint16", 1), ("uint16", 255), ("bool", 1)])
def test_a_mask_of_zero_and_one_other_value_is_black_and_white(kind, dtype, high):
    drawn = np.arange(6).reshape(2, 3) % 2 == 0
    stored = encoded(Image.fromarray((drawn * high).astype(dtype)), kind)
    assert np.array_equal(np.asarray(open_mask(stored, (2, 3))) == 255, drawn)
    assert np.array_equal(np.asarray(open_mask(stored, (2, 3), "black")) == 255, ~drawn)


def test_masks_of_labels_and_of_faint_transparency_are_black_and_white_too():
    drawn = np.arange(6).reshape(2, 3) % 2 == 0
    labels = Image.fromarray(drawn.astype(np.uint8)).convert("P")
    labels.putpalette([0, 0, 0, 128, 0, 0])
    assert np.array_equal(np.asarray(open_mask(labels, (2, 3))) == 255, drawn)
    faint = Image.merge("LA", (Image.new("L", (3, 2), 255), Image.fromarray(drawn.astype(np.uint8))))
    assert np.array_equal(np.asarray(open_mask(faint, (2, 3))) == 255, ~drawn)
    soft = Image.fromarray(np.array([[0, 100, 200]], np.uint8))
    assert np.asarray(open_mask(soft, (1, 3)))[0].tolist() == [0, 0, 255]
    bright = Image.fromarray(np.array([[200, 255, 200]], np.uint8))
    assert np.asarray(open_mask(bright, (1, 3)))[0].tolist() == [255, 255, 255]


def test_an_enlarged_picture_has_steeper_edges_and_one_that_does_not_grow_is_as_it_was() -> None:
    picture = Image.new("RGB", (32, 32), (40, 90, 200))
    picture.paste((250, 120, 30), (8, 8, 24, 24))
    plain, steep = resized(picture, (64, 64)), enlarged(picture, (64, 64))

    def steepest(image: Image.Image) -> int:
        row = np.asarray(image.convert("L"), dtype=int)[32]
        return int(np.abs(np.diff(row)).max())

    assert steepest(steep) > 1.2 * steepest(plain)
    assert np.abs(np.asarray(steep, dtype=int)[:8] - np.asarray(plain, dtype=int)[:8]).max() <= 2, "plain ground stays"
    for size in ((32, 32), (16, 16)):
        assert enlarged(picture, size).tobytes() == resized(picture, size).tobytes()
