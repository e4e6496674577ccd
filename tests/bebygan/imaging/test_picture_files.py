import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from bebygan.errors import DataError
from bebygan.imaging.picture_files import (
    Picture,
    enlarged,
    picture_of,
    read_picture,
    to_pillow,
    write_picture,
    write_upscaled,
)

ORIENTATION, ARTIST = 0x0112, 0x013B
RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_colours_are_written_and_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(Picture(RGB, None, False, {}), path)
    picture = read_picture(path)
    assert np.array_equal(picture.rgb, RGB)
    assert (picture.alpha, picture.grey) == (None, False)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_formats_keep_the_colours_nearly(suffix: str, tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    write_picture(Picture(smooth, None, False, {}), tmp_path / f"a{suffix}")
    assert np.abs(read_picture(tmp_path / f"a{suffix}").rgb.astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_grey_picture_stays_grey(suffix: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "grey.png", Image.fromarray(RGB[..., 0]))
    picture = read_picture(source)
    assert picture.grey
    assert np.array_equal(picture.rgb, np.repeat(RGB[..., :1], 3, 2))
    write_picture(picture, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as written:
        assert written.mode == "L"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "palette"])
def test_transparency_is_kept_apart_and_enlarged(mode: str, tmp_path: Path) -> None:
    alpha = np.zeros((6, 9), np.uint8)
    alpha[:, 4:] = 255
    image = Image.fromarray(np.dstack([RGB, alpha]))
    if mode == "LA":
        image = image.convert("LA")
    if mode in ("PA", "palette"):
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = 0
    picture = read_picture(saved(tmp_path / "a.png", image))
    assert picture.alpha is not None
    if mode in ("RGBA", "LA"):
        assert np.array_equal(picture.alpha, alpha)
    large = enlarged(picture, picture.rgb.repeat(4, 0).repeat(4, 1))
    write_picture(large, tmp_path / "b.png")
    again = read_picture(tmp_path / "b.png")
    assert again.alpha is not None
    assert again.alpha.shape == again.rgb.shape[:2] == (24, 36)
    assert again.grey == (mode == "LA")
    with pytest.raises(DataError, match=r"b\.jpg cannot hold transparency: choose a name that ends with \.png"):
        write_picture(large, tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once_and_other_metadata_stay(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = orientation, "Ada"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif, icc_profile=profile)
    picture = read_picture(source)
    assert picture.rgb.shape == ((6, 9, 3) if orientation < 5 else (9, 6, 3))
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        write_picture(picture, tmp_path / f"b{suffix}")
        assert read_picture(tmp_path / f"b{suffix}").rgb.shape == picture.rgb.shape
        with Image.open(tmp_path / f"b{suffix}") as written:
            assert written.getexif().get(ORIENTATION, 1) == 1
            assert written.getexif()[ARTIST] == "Ada"
            assert written.info["icc_profile"] == profile


def test_a_print_becomes_rgb_without_the_profile_of_its_inks(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.jpg", Image.fromarray(RGB).convert("CMYK"), icc_profile=b"inks")
    picture = read_picture(source)
    assert picture.rgb.shape == RGB.shape
    assert "icc_profile" not in picture.metadata


def bomb(path: Path) -> None:
    """Write a PNG of a few bytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    saved(tmp_path / "whole.png", Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "drawing.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    bomb(tmp_path / "bomb.png")
    saved(tmp_path / "deep.tif", Image.fromarray(np.arange(54, dtype=np.float32).reshape(6, 9)))
    saved(tmp_path / "moving.gif", Image.fromarray(RGB), save_all=True, append_images=[Image.fromarray(255 - RGB)])
    for name, reason in {
        "cut.png": "truncated",
        "text.png": "is no JPEG, PNG",
        "empty.png": "is no JPEG, PNG",
        "drawing.png": "is no JPEG, PNG",
        "bomb.png": "exceeds limit",
        "deep.tif": "it has 32 bits per channel: save it with 8 or 16 bits",
        "moving.gif": "it holds 2 frames or pages",
        "missing.png": "No such file",
    }.items():
        with pytest.raises(DataError, match=reason) as caught:
            read_picture(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_format_that_cannot_hold_the_size_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wide = Picture(np.zeros((1, 70_000, 3), np.uint8), None, False, {})
    for name in ("a.jpg", "a.webp"):
        with pytest.raises(DataError, match=rf"{name} cannot hold 70000x1 pixels, only sides up to \d+: choose"):
            write_picture(wide, tmp_path / name)
    write_picture(wide, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_16_bits_are_read_and_written(count: int, suffix: str, tmp_path: Path) -> None:
    channels = np.random.default_rng(0).integers(0, 2**16, (6, 9, count), np.uint16)
    exif = Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = 6, "Ada"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / f"a{suffix}"
    write_picture(picture_of(channels, {"icc_profile": profile, "exif": exif.tobytes()}), path)
    # The orientation is applied once.
    picture = read_picture(path)
    turned = np.rot90(channels, -1)
    if (count, suffix) == (2, ".tif"):
        turned = np.dstack([np.repeat(turned[..., :1], 3, 2), turned[..., 1]])
    assert picture.channels.dtype == np.uint16
    assert np.array_equal(picture.channels, turned)
    write_picture(picture, path)
    again = read_picture(path)
    assert np.array_equal(again.channels, turned)
    assert again.metadata["icc_profile"] == profile
    with Image.open(path) as file:
        assert file.getexif()[ARTIST] == "Ada"
        assert ORIENTATION not in file.getexif()


@pytest.mark.parametrize("order", ["II", "MM"])
def test_16_bit_colours_of_an_uncompressed_tiff_are_read_in_both_byte_orders(order: str, tmp_path: Path) -> None:
    channels = np.random.default_rng(0).integers(0, 2**16, (4, 5, 3), np.uint16)
    letter = "<" if order == "II" else ">"
    tags = [(256, 5), (257, 4), (258, 16), (259, 1), (262, 2), (273, 200), (277, 3), (278, 4), (279, 120)]
    entries = b"".join(
        struct.pack(f"{letter}HHIHH", tag, 3, 1, value, 0)
        if tag != 258
        else struct.pack(f"{letter}HHII", 258, 3, 3, 180)
        for tag, value in tags
    )
    header = order.encode() + struct.pack(f"{letter}HIH", 42, 8, len(tags)) + entries + bytes(4)
    content = header.ljust(180, b"\0") + struct.pack(f"{letter}HHH", 16, 16, 16)
    (tmp_path / "a.tif").write_bytes(content.ljust(200, b"\0") + channels.astype(f"{letter}u2").tobytes())
    assert np.array_equal(read_picture(tmp_path / "a.tif").rgb, channels)


def test_transparency_of_16_bits_is_enlarged_and_8_bit_formats_refuse(tmp_path: Path) -> None:
    channels = np.full((4, 5, 4), 40_000, np.uint16)
    picture = picture_of(channels)
    large = enlarged(picture, picture.rgb.repeat(4, 0).repeat(4, 1))
    assert (large.channels == 40_000).all()
    opaque = picture_of(channels[..., :3])
    for name in ("a.jpg", "a.webp", "a.bmp"):
        with pytest.raises(DataError, match=r"cannot hold 16 bits per channel: choose a name that ends with \.png or"):
            write_picture(opaque, tmp_path / name)


def test_avif_is_read_and_written_with_transparency(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 4))
    write_picture(picture_of(smooth), tmp_path / "a.avif")
    assert np.abs(read_picture(tmp_path / "a.avif").channels.astype(int) - smooth).mean() < 3


def metadata() -> dict[str, bytes]:
    """Return what a camera writes, with its details and its place, and a profile."""
    exif = Image.Exif()
    exif[ARTIST] = "Ada"
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 10:00:00", 0x829A: IFDRational(1, 60)})
    exif.get_ifd(0x8825).update({1: "N", 2: (IFDRational(1, 1), IFDRational(2, 1), IFDRational(3, 1))})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {"exif": exif.tobytes(), "icc_profile": profile}


def large_picture(count: int, kind: type) -> tuple[Picture, np.ndarray]:
    """Return a picture of 33 x 21 pixels, and smooth colours four times as large."""
    random, most = np.random.default_rng(count), np.iinfo(kind).max
    picture = picture_of(random.integers(0, most, (33, 21, count), kind, True), metadata())
    noise = random.integers(0, most // 9, (132, 84, 1 if picture.grey else 3))
    ramp = np.linspace(0, most * 8 // 9, 132)[:, None, None]
    return picture, np.broadcast_to((ramp + noise).astype(kind), (132, 84, 3))


def bands(rgb: np.ndarray) -> Iterator[np.ndarray]:
    for top, bottom in ((0, 4), (4, 7), (7, 80), (80, 128), (128, 132)):
        yield rgb[top:bottom]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".tif", {"compression": "tiff_deflate"}),
        (".jpg", {"quality": 95, "subsampling": 0}),
        (".webp", {"quality": 95}),
        (".avif", {"quality": 90, "subsampling": "4:4:4"}),
    ],
)
def test_a_picture_written_in_bands_decodes_to_what_pillow_encodes_of_the_whole(
    suffix: str, options: dict[str, Any], count: int, tmp_path: Path
) -> None:
    picture, rgb = large_picture(count, np.uint8)
    if suffix == ".jpg" and picture.alpha is not None:
        with pytest.raises(DataError, match=r"a\.jpg cannot hold transparency"):
            write_upscaled(picture, bands(rgb), tmp_path / "a.jpg")
        return
    write_upscaled(picture, bands(rgb), tmp_path / f"a{suffix}")
    whole = to_pillow(enlarged(picture, rgb))
    # Pillow fails at the details in a deflated TIFF.
    whole.save(tmp_path / f"b{suffix}", **options, **({} if suffix == ".tif" else picture.metadata))
    with Image.open(tmp_path / f"a{suffix}") as ours, Image.open(tmp_path / f"b{suffix}") as theirs:
        assert ours.mode == theirs.mode
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.info["icc_profile"] == picture.metadata["icc_profile"]
        exif = ours.getexif()
        assert exif[ARTIST] == "Ada"
        assert dict(exif.get_ifd(0x8769)) == {0x9003: "2020:01:01 10:00:00", 0x829A: IFDRational(1, 60)}
        assert dict(exif.get_ifd(0x8825)) == {1: "N", 2: (1, 2, 3)}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_16_bits_are_written_in_bands(count: int, suffix: str, tmp_path: Path) -> None:
    picture, rgb = large_picture(count, np.uint16)
    write_upscaled(picture, bands(rgb), tmp_path / f"a{suffix}")
    again, whole = read_picture(tmp_path / f"a{suffix}"), enlarged(picture, rgb)
    assert np.array_equal(again.rgb, whole.rgb)
    assert again.alpha is None if whole.alpha is None else np.array_equal(again.alpha, whole.alpha)
    assert again.metadata["icc_profile"] == picture.metadata["icc_profile"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_only_some_rows_of_a_large_picture_are_in_memory(suffix: str, tmp_path: Path) -> None:
    picture = picture_of(np.zeros((1000, 1000, 3), np.uint8))
    tracemalloc.start()
    try:
        write_upscaled(picture, (np.zeros((200, 4000, 3), np.uint8) for _ in range(20)), tmp_path / f"a{suffix}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two bands have 4.8 MB, the picture has 48 MB.
    assert peak < 10e6
    with Image.open(tmp_path / f"a{suffix}") as written:
        assert written.size == (4000, 4000)


def test_what_the_format_cannot_hold_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    def none() -> Iterator[np.ndarray]:
        raise AssertionError("computed")
        yield

    with pytest.raises(DataError, match="cannot hold 80000x4 pixels, only sides up to 65500: choose"):
        write_upscaled(picture_of(np.zeros((1, 20_000, 3), np.uint8)), none(), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
