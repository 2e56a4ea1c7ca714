"""Image files of every kind that Pillow opens: the right 8 bits, or refused by the file's name."""

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from jaxcurv.data.images import decode, height_and_width
from jaxcurv.data.layouts import as_image

LEVELS = np.array([[0, 128, 129, 257, 386], [32768, 65279, 65406, 65407, 65535]], np.uint16)
"""16-bit gray levels, some beside the edges of the 8-bit ones."""

EIGHT_BITS = np.array([[0, 0, 1, 1, 2], [128, 254, 254, 255, 255]], np.uint8)
"""round(LEVELS / 257)."""

COLOURS = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3) * 8


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_the_table_of_levels_is_the_one_of_the_docstring() -> None:
    np.testing.assert_array_equal(np.round(LEVELS / 257), EIGHT_BITS)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gray_levels_of_16_bits_are_divided_by_257(
    suffix: str, channels: int, tmp_path: Path
) -> None:
    pixels = decode(saved(Image.fromarray(LEVELS), tmp_path / f"xray.{suffix}"), channels)
    assert pixels.shape == (2, 5, channels)
    for channel in range(min(channels, 3)):
        np.testing.assert_array_equal(pixels[..., channel], EIGHT_BITS)
    if channels == 4:
        assert (pixels[..., 3] == 255).all()


def tiff(
    levels: np.ndarray, bits: int, photometric: int, order: str = "<", sample_format: int = 1
) -> bytes:
    """A gray TIFF of one strip, whose levels are packed one after another, each row in bytes."""
    rows = ["".join(f"{level:0{bits}b}" for level in row) for row in levels.tolist()]
    if bits == 16:
        strip = levels.astype(f"{order}u2").tobytes()
    else:
        rows = [row.ljust(-(-len(row) // 8) * 8, "0") for row in rows]
        strip = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    height, width = levels.shape
    tags = [
        *((256, width), (257, height), (258, bits), (259, 1), (262, photometric)),
        *((273, 8 + 2 + 11 * 12 + 4), (277, 1), (278, height), (279, len(strip)), (284, 1)),
        (339, sample_format),
    ]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + strip


@pytest.mark.parametrize("order", ["<", ">"])
def test_levels_of_either_byte_order(order: str) -> None:
    np.testing.assert_array_equal(decode(tiff(LEVELS, 16, 1, order), 1)[..., 0], EIGHT_BITS)


def test_a_tiff_whose_white_is_zero() -> None:
    np.testing.assert_array_equal(decode(tiff(LEVELS, 16, 0), 1)[..., 0], 255 - EIGHT_BITS)


def test_levels_of_12_bits() -> None:
    levels = np.array([[0, 8, 9, 4095], [2048, 4086, 4087, 1000]], np.uint16)
    expected = np.round(levels * (255 / 4095))
    np.testing.assert_array_equal(decode(tiff(levels, 12, 1), 1)[..., 0], expected)


def test_a_tiff_of_signed_8_bits_is_refused() -> None:
    signed = tiff(np.array([[200, 3]], np.uint16), 8, 1, sample_format=2)
    with pytest.raises(ValueError, match="has signed pixels"):
        decode(signed)


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_levels_of_fewer_bits_in_16_are_told(suffix: str, bits: int, tmp_path: Path) -> None:
    path = saved(Image.fromarray(LEVELS >> (16 - bits)), tmp_path / f"scan.{suffix}")
    with pytest.warns(UserWarning, match=rf"scan.* no level above {2**bits - 1}, .*{bits} bits"):
        decode(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_levels_above_half_of_16_bits_are_not_told_of(suffix: str, tmp_path: Path) -> None:
    levels = np.array([[0, 20000, 32768]], np.uint16)
    pixels = decode(saved(Image.fromarray(levels), tmp_path / f"scan.{suffix}"))
    np.testing.assert_array_equal(pixels[0, :, 0], np.round(levels[0] / 257))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_fixed_white_are_refused_by_name(mode: str, tmp_path: Path) -> None:
    dtype = {"F": np.float32, "I": np.int32}[mode]
    path = saved(Image.fromarray(np.eye(4, dtype=dtype)), tmp_path / "scan.tif")
    with pytest.raises(
        ValueError, match=r"scan\.tif has pixels .*without a fixed white: save it with 8 bits"
    ):
        decode(path)


GRAY = COLOURS[..., 0]
ALPHA = np.full_like(GRAY, 7)


@pytest.mark.parametrize(
    ("mode", "pixels", "suffixes"),
    [
        ("L", GRAY, ("png", "tif", "bmp", "gif")),
        ("LA", np.dstack([GRAY, ALPHA]), ("png", "tif")),
        ("RGB", COLOURS, ("png", "tif", "bmp", "webp")),
        ("RGBA", np.dstack([COLOURS, ALPHA]), ("png", "tif", "webp")),
    ],
)
def test_modes_of_8_bits_keep_their_levels(
    mode: str, pixels: np.ndarray, suffixes: tuple[str, ...], tmp_path: Path
) -> None:
    expected = COLOURS if mode.startswith("RGB") else np.repeat(GRAY[..., np.newaxis], 3, axis=-1)
    for suffix in suffixes:
        exact = {"lossless": True, "exact": True} if suffix == "webp" else {}
        path = saved(Image.fromarray(pixels, mode), tmp_path / f"image.{suffix}", **exact)
        np.testing.assert_array_equal(decode(path), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_opened_levels_of_16_bits_are_refused_with_a_cure_that_keeps_them(mode: str) -> None:
    image = Image.fromarray(LEVELS)
    if mode != "I;16":
        given = LEVELS.astype({"I;16B": ">u2", "I": np.int32, "F": np.float32}[mode])
        image = Image.frombytes(mode, image.size, given.tobytes())
    with pytest.raises(ValueError, match=f"mode {mode}, of more than 8 bits") as refused:
        as_image(image)
    cure = re.search(r"\(np\.asarray.*\[\.\.\., None\]", str(refused.value))
    assert cure is not None
    assert "convert(" not in str(refused.value)
    pixels = eval(cure[0], {"np": np, "image": image})
    np.testing.assert_array_equal(as_image(pixels), EIGHT_BITS[..., np.newaxis])


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
def test_a_palette_gives_its_colours(suffix: str, tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 3, 4, 5, 6, 240])
    palette.putpixel((1, 0), 1)
    pixels = decode(saved(palette, tmp_path / f"image.{suffix}"))
    np.testing.assert_array_equal(pixels, [[[250, 3, 4], [5, 6, 240]]])


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit_is_black_or_white(suffix: str, tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[True, False, True]]))
    assert bits.mode == "1"
    path = saved(bits, tmp_path / f"image.{suffix}")
    np.testing.assert_array_equal(decode(path, 1)[..., 0], [[255, 0, 255]])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (2, 2), (255, 0, 128, 0))
    np.testing.assert_array_equal(decode(saved(ink, tmp_path / "image.tif"))[0, 0], [0, 255, 127])


@pytest.mark.parametrize("channels", [1, 3])
def test_lab_is_that_of_its_colours(channels: int, tmp_path: Path) -> None:
    lab = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (153, 148, 178)])
    colour = decode(saved(lab, tmp_path / "image.tif"))[0, 0].astype(int)
    # L* = 60, a* = 20, b* = 50 in sRGB, by colour science's formulas: (188, 128, 55).
    assert np.abs(colour - [188, 128, 55]).max() <= 6
    weights = np.array([0.299, 0.587, 0.114])
    found = decode(tmp_path / "image.tif", channels)
    expected = colour if channels == 3 else [weights @ colour]
    np.testing.assert_allclose(found[0, 0], expected, atol=1)


def test_colours_of_16_bits_keep_the_upper_8() -> None:
    colours = np.array([[[0x1234, 0xFFFF, 0x80FF]]], ">u2")
    pixels = decode(png16(colours))
    np.testing.assert_array_equal(pixels, [[[0x12, 0xFF, 0x80]]])


def png16(colours: np.ndarray, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[colours.shape[2]]
    rows = [row.astype(">u2").tobytes() for row in colours]
    return png(colours.shape[:2], 16, kind, rows, transparent)


def png(
    shape: tuple[int, ...], bits: int, kind: int, rows: list[bytes], transparent: tuple[int, ...]
) -> bytes:
    """A PNG of given rows; `transparent` is the level, or colour, of its chunk tRNS."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], bits, kind, 0, 0, 0))
    if transparent:
        chunks += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    filtered = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", filtered) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_a_gray_png_is_in_its_own_bits(bits: int) -> None:
    white = 2**bits - 1
    levels = np.linspace(0, white, 16).round().astype(int).reshape(2, 8)
    if bits == 16:
        levels[0, 4] = levels[0, 5] + 1  # the same level of 8 bits
    packed = [int("".join(f"{level:0{bits}b}" for level in row), 2) for row in levels.tolist()]
    rows = [row.to_bytes(bits, "big") for row in packed]
    for level in (0, int(levels[0, 5]), white):
        pixels = decode(png((2, 8), bits, 0, rows, (level,)), 4)
        np.testing.assert_array_equal(pixels[..., 3], np.where(levels == level, 0, 255))
        np.testing.assert_array_equal(pixels[..., 0], np.round(levels * 255 / white))
        for channels in (1, 3):
            plain = decode(png((2, 8), bits, 0, rows, (level,)), channels)
            np.testing.assert_array_equal(plain[..., 0], pixels[..., 0])


def test_a_transparent_colour_of_16_bits_is_refused_as_a_fourth_channel() -> None:
    colours = np.array([[[0x1234, 0xFFFF, 0x80FF], [0x1235, 0xFFFF, 0x80FF]]], ">u2")
    given = png16(colours, (0x1234, 0xFFFF, 0x80FF))
    with pytest.raises(ValueError, match=r"transparent colour of 16 bits.*alpha channel"):
        decode(given, 4)
    np.testing.assert_array_equal(decode(given), colours >> 8)


def colour_tiff(
    pixels: np.ndarray, planar: bool = False, compressed: bool = False, **tags: int
) -> bytes:
    """A TIFF of several samples a pixel, 8 or 16 bits each; tags by number, as in `_338=0`."""
    height, width, samples = pixels.shape
    pixels = pixels.astype(pixels.dtype.newbyteorder("<"))
    planes = np.moveaxis(pixels, -1, 0) if planar else [pixels]
    strips = [plane.tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    starts = np.cumsum([8, *map(len, strips[:-1])]).tolist()
    compression, photometric = 8 if compressed else 1, 2 if samples > 2 else 1
    lengths = [len(strip) for strip in strips]
    ordinary = [
        *((256, [width]), (257, [height]), (258, [8 * pixels.itemsize] * samples)),
        *((259, [compression]), (262, [photometric]), (273, starts), (277, [samples])),
        *((278, [height]), (279, lengths), (284, [1 + planar])),
    ]
    given = dict(ordinary) | {int(number[1:]): [value] for number, value in tags.items()}
    body, entries = b"".join(strips), b""
    beyond = 8 + len(body) + 2 + 12 * len(given) + 4
    values = b""
    for number in sorted(given):
        packed = struct.pack(f"<{len(given[number])}I", *given[number])
        place = packed if len(packed) == 4 else struct.pack("<I", beyond + len(values))
        values += packed if len(packed) > 4 else b""
        entries += struct.pack("<HHI", number, 4, len(given[number])) + place
    start = b"II" + struct.pack("<HI", 42, 8 + len(body))
    return start + body + struct.pack("<H", len(given)) + entries + bytes(4) + values


DEEP = np.arange(2 * 5 * 4, dtype=np.uint16).reshape(2, 5, 4) * 1600
"""Four bands of 16 bits."""


@pytest.mark.parametrize("samples", [3, 4])
def test_planes_of_16_bits_are_right_or_refused(samples: int) -> None:
    deep = DEEP[..., :samples]
    alpha = {} if samples == 3 else {"_338": 2}
    expected = decode(colour_tiff(deep, **alpha), 4)
    np.testing.assert_array_equal(expected[..., :samples], deep >> 8)
    with pytest.raises(ValueError, match=r"planes of 16 bits.*one pixel after another"):
        decode(colour_tiff(deep, planar=True, **alpha), 4)
    pixels = decode(colour_tiff(deep, planar=True, compressed=True, **alpha), 4)
    np.testing.assert_array_equal(pixels, expected)
    shallow = (deep >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(colour_tiff(shallow, planar=True, **alpha), 4), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gray_that_was_multiplied_by_its_transparency(channels: int) -> None:
    pixels = np.array([[[0, 51], [10, 51], [51, 51], [200, 255]]], np.uint8)
    decoded = decode(colour_tiff(pixels, _338=1), channels)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 50, 255, 200])
    if channels == 4:
        np.testing.assert_array_equal(decoded[..., 3], pixels[..., 1])


@pytest.mark.parametrize(("bands", "depth"), [(2, 8), (4, 8), (4, 16)])
def test_bands_that_are_no_transparency_are_told(bands: int, depth: int) -> None:
    deep = DEEP[..., :bands]
    given = colour_tiff(deep if depth == 16 else (deep >> 8).astype(np.uint8), _338=0)
    with pytest.warns(UserWarning, match=rf"{bands} bands.*are dropped"):
        pixels = decode(given)
    np.testing.assert_array_equal(pixels, np.broadcast_to(deep[..., : bands - 1] >> 8, (2, 5, 3)))
    with pytest.raises(ValueError, match=rf"has {bands} bands.*no transparency"):
        decode(given, 4)


@pytest.mark.filterwarnings("error")
def test_transparency_is_a_fourth_channel() -> None:
    pixels = (DEEP >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(colour_tiff(pixels, _338=2), 4), pixels)
    np.testing.assert_array_equal(decode(colour_tiff(pixels, _338=2), 3), pixels[..., :3])


DARK = (DEEP // 16)[..., :3]
"""Levels of 12 bits in 16."""


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_12_bits_in_16_are_told_by_name(
    suffix: str, alpha: bool, tmp_path: Path
) -> None:
    colours = np.dstack([DARK, np.full(DARK.shape[:2], 65535, np.uint16)]) if alpha else DARK
    tags = {"_338": 2} if alpha else {}
    write = png16 if suffix == "png" else lambda pixels: colour_tiff(pixels, **tags)
    path = tmp_path / f"scan.{suffix}"
    path.write_bytes(write(colours))
    with pytest.warns(UserWarning, match=rf"scan\.{suffix}.*no level above 4095"):
        decode(path)


def test_gray_with_transparency_of_12_bits_in_16_is_told() -> None:
    gray = np.dstack([DARK[..., 0], np.full(DARK.shape[:2], 65535, np.uint16)])
    with pytest.warns(UserWarning, match="no level above 4095"):
        decode(png16(gray))


@pytest.mark.parametrize("samples", [1, 3])
def test_a_stated_white_below_that_of_16_bits_is_told(samples: int) -> None:
    with pytest.warns(UserWarning, match="states 16383 as its largest level"):
        decode(colour_tiff(DEEP[..., :samples] // 4, _281=16383))


@pytest.mark.filterwarnings("error")
def test_ordinary_images_of_16_bits_are_not_told_of() -> None:
    for samples in (1, 3):
        decode(colour_tiff(DEEP[..., :samples]))
        decode(colour_tiff(DEEP[..., :samples], _281=65535))
        decode(colour_tiff(DEEP[..., :samples], _281=int(DEEP.max())))
        decode(colour_tiff(np.zeros_like(DEEP[..., :samples])))
    decode(png16(DEEP[..., :3]))
    decode(colour_tiff((DARK >> 8).astype(np.uint8)))


@pytest.mark.filterwarnings("error")
def test_a_bmp_of_16_bits_has_8_of_each_colour() -> None:
    """Of 5, 6 and 5 bits, as of a camera's frames; a dark one."""
    bits = np.array([[0x0000, 0x0821], [0x7BEF, 0x4208]], "<u2")
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, bits.nbytes, 0, 0, 0, 0)
    start = b"BM" + struct.pack("<IHHI", 66 + bits.nbytes, 0, 0, 66)
    pixels = decode(start + header + masks + bits[::-1].tobytes())
    parts = np.stack([bits >> 11, bits >> 5 & 63, bits & 31], -1)
    assert np.abs(pixels - parts * 255 / np.array([31, 63, 31])).max() < 1


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_several_frames_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for read in (decode, height_and_width):
        with pytest.raises(ValueError, match=rf"moving\.{suffix} has several frames or pages"):
            read(path)


def test_one_frame_is_an_image(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOURS), tmp_path / "still.gif", save_all=True)
    assert decode(path).shape == COLOURS.shape


def test_the_preview_of_a_camera_s_jpeg_is_no_frame() -> None:
    picture, preview = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)
    buffer = io.BytesIO()
    picture.save(buffer, "MPO", save_all=True, append_images=[preview], quality=100, subsampling=0)
    pixels = decode(buffer.getvalue()).astype(int)
    assert np.abs(pixels - COLOURS).max() < 16


# What a TIFF says of its pixels

ORIENTED = (
    *(("L", GRAY, kind) for kind in ("raw", "tiff_lzw")),
    *(("I;16", LEVELS, kind) for kind in ("raw", "tiff_deflate")),
    *(("RGB", COLOURS, kind) for kind in ("raw", "tiff_lzw")),
    ("P", GRAY, "raw"),
    ("RGBA", np.dstack([COLOURS, np.full_like(GRAY, 255)]), "raw"),
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["tag", "xmp"])
def test_a_stated_orientation_is_not_applied(place: str, orientation: int, tmp_path: Path) -> None:
    xmp = f'<x tiff:Orientation="{orientation}"/>'.encode()
    tags = {274: orientation} if place == "tag" else {700: xmp}
    for mode, pixels, compression in ORIENTED:
        image = Image.fromarray(pixels)
        image = image.convert(mode) if mode == "P" else image
        plain = decode(saved(image, tmp_path / "plain.tif"))
        path = saved(image, tmp_path / "turned.tif", compression=compression, tiffinfo=tags)
        for given in (path, path.read_bytes()):
            np.testing.assert_array_equal(decode(given), plain, f"{mode} {compression}")
        assert height_and_width(path) == plain.shape[:2]
    exif = Image.Exif()
    exif[274] = orientation
    for suffix in ("png", "webp", "jpg"):
        options = {"lossless": True} if suffix == "webp" else {}
        path = saved(Image.fromarray(COLOURS), tmp_path / f"a.{suffix}", exif=exif, **options)
        plain = decode(saved(Image.fromarray(COLOURS), tmp_path / f"b.{suffix}", **options))
        np.testing.assert_array_equal(decode(path), plain)
        assert height_and_width(path) == (2, 5)


@pytest.mark.parametrize("samples", [1, 3])
def test_16_bits_of_few_levels_are_told_with_them(samples: int, tmp_path: Path) -> None:
    """As CT scans that are stored as Hounsfield units plus 32768."""
    path = tmp_path / "ct.tif"
    path.write_bytes(colour_tiff(DEEP[..., :samples] // 16 + 31744))
    with pytest.warns(UserWarning, match=r"ct\.tif.*levels from 31\d* to 3\d* alone.*stretch"):
        decode(path)


def test_a_white_sheet_is_not_told_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for samples in (1, 3):
            decode(colour_tiff(np.full_like(DEEP[..., :samples], 65535)))


def with_colour_map(levels: np.ndarray) -> bytes:
    """A palette TIFF of two by five pixels with these 256 colours, `[256, 3]`."""
    buffer = io.BytesIO()
    palette = Image.fromarray(np.arange(10, dtype=np.uint8).reshape(2, 5))
    palette = palette.convert("P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(buffer, "TIFF")
    content = bytearray(buffer.getvalue())
    with Image.open(io.BytesIO(content)) as opened:
        assert isinstance(opened, TiffImagePlugin.TiffImageFile)
        stored = struct.pack("<768H", *opened.tag_v2[320])
    at = content.index(stored)
    content[at : at + len(stored)] = levels.T.astype("<u2").tobytes()
    return bytes(content)


def test_a_colour_map_of_8_bits_is_refused() -> None:
    colours = np.arange(256)[:, np.newaxis] * [1, 0, 1]
    right = decode(with_colour_map(colours * 257))
    np.testing.assert_array_equal(right[..., 0].ravel(), np.arange(10))
    with pytest.raises(ValueError, match=r"a record has colours from 0 to 255 in its colour map"):
        decode(with_colour_map(colours))
    assert decode(with_colour_map(colours * 0)).max() == 0


@pytest.mark.parametrize(
    "said", ["ImageJ=1.53\nimages={}\nslices={}\n", '{{"shape": [{}, 64, 64]}}']
)
def test_a_stack_under_one_page_is_refused(said: str, tmp_path: Path) -> None:
    path, count, page = tmp_path / "stack.tif", 3, np.eye(64, dtype=np.uint8)
    for number in (1, count):
        Image.fromarray(page).save(path, tiffinfo={270: said.format(number, number)})
        np.testing.assert_array_equal(decode(path, 1)[..., 0], page)  # as taken from a stack
    with path.open("ab") as file:
        file.write(page.tobytes() * (count - 1))
    for read in (decode, height_and_width):
        with pytest.raises(ValueError, match=r"stack\.tif has several frames or pages"):
            read(path)
