import dataclasses
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bebygan.losses.region_aware import local_deviation
from components.config import IngestParams
from components.ingest.photograph import Refusal, examine, texture
from components.ingest.splits import split_of

Picture = Callable[..., Image.Image]
PARAMS = IngestParams(
    minimum_side=48,
    convert=(),
    near_duplicate_bits=4,
    validation_share=0.2,
    test_share=0.2,
    quarantine_tolerance=0.1,
)
ALL = replace(PARAMS, convert=("rotated", "grey", "transparent", "cmyk", "16-bit"))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """Encode an RGB PNG, because Pillow can write neither 16-bit RGB nor a header with a false size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_16_bit(pixels: np.ndarray[Any, Any]) -> bytes:
    """Encode (H, W, 3) uint16."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 16, rows)


def refusal(content: bytes, params: IngestParams = PARAMS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        examine("x", content, params)
    assert "\n" not in caught.value.detail
    return caught.value


def stored_pixels(content: bytes, params: IngestParams) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(examine("x", content, params)[1])))


@pytest.mark.parametrize(
    ("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp")]
)
def test_an_upright_8_bit_rgb_picture_is_stored_unchanged(kind: str, suffix: str, picture: Picture) -> None:
    content = encoded(picture(0, 96, 80), kind)
    photograph, stored = examine("deep/name.xyz", content, PARAMS)
    assert stored == content
    sha256 = hashlib.sha256(content).hexdigest()
    assert dataclasses.asdict(photograph) | {"texture_mean": 0, "texture_share": 0, "phash": ""} == {
        "sha256": sha256,
        "split": split_of(sha256, 0.2, 0.2),
        "source": "deep/name.xyz",
        "file": f"photographs/{sha256}.{suffix}",
        "size_bytes": len(content),
        "width": 96,
        "height": 80,
        "mode": "RGB",
        "bit_depth": 8,
        "format": kind,
        "converted": "",
        "texture_mean": 0,
        "texture_share": 0,
        "phash": "",
    }


def test_the_perceptual_hash_is_that_of_imagehash(picture: Picture) -> None:
    assert examine("x", encoded(picture(0)), PARAMS)[0].phash == str(imagehash.phash(picture(0)))


def test_an_empty_file_is_refused() -> None:
    assert refusal(b"").reason == "not-an-image"
    assert "empty" in refusal(b"").detail


@pytest.mark.parametrize(
    "content", [b"This is a letter, not a picture." * 50, b"\x89PNG\r\n\x1a\n", b"%PDF-1.7 " * 9, b"\xff" * 999]
)
def test_the_refusal_of_other_files_names_the_accepted_formats(content: bytes) -> None:
    assert refusal(content).reason == "not-an-image"
    assert "no JPEG, PNG, WebP, TIFF or BMP" in refusal(content).detail


def test_formats_whose_decoders_run_programs_are_never_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\nshowpage\n"
    assert refusal(postscript).reason == "not-an-image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_never_accepted(kind: str, share: float, picture: Picture) -> None:
    content = encoded(picture(0), kind)
    cut = refusal(content[: int(len(content) * share)])
    assert cut.reason in {"truncated", "unreadable", "not-an-image"}
    assert "copy it again" in cut.detail or cut.reason == "not-an-image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_the_first_half_of_a_file_is_truncated(kind: str, picture: Picture) -> None:
    content = encoded(picture(0), kind)
    assert refusal(content[: len(content) // 2]).reason == "truncated"


def test_a_damaged_png_is_unreadable(picture: Picture) -> None:
    content = bytearray(encoded(picture(0)))
    content[len(content) // 2] ^= 0xFF
    assert refusal(bytes(content)).reason in {"unreadable", "truncated"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]))
def test_a_damaged_file_is_refused_or_decoded_without_a_crash(data: st.DataObject, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    content = bytearray(encoded(Image.fromarray(pixels), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    try:
        photograph, stored = examine("x", bytes(content), ALL)
    except Refusal:
        return
    assert Image.open(io.BytesIO(stored)).size == (photograph.width, photograph.height)


def test_a_decompression_bomb_is_huge() -> None:
    bomb = refusal(png(60_000, 60_000, 8, b""))
    assert bomb.reason == "huge"
    assert "3600000000 pixels" in bomb.detail


@pytest.mark.parametrize(
    ("width", "height", "fits"), [(48, 200, True), (47, 200, False), (200, 47, False), (1, 1, False)]
)
def test_a_picture_is_tiny_if_its_shorter_side_is(width: int, height: int, fits: bool, picture: Picture) -> None:
    content = encoded(picture(0).resize((width, height)))
    if fits:
        examine("x", content, PARAMS)
    else:
        assert refusal(content).reason == "tiny"
        assert f"{width}x{height} pixels, under ingest.minimum_side 48" in refusal(content).detail


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_rotated_photograph_is_refused_or_made_upright(orientation: int, kind: str, picture: Picture) -> None:
    image = picture(0)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = encoded(image, kind, exif=exif(orientation), **options)
    assert refusal(content).reason == "rotated"
    assert "add rotated to ingest.convert" in refusal(content).detail
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[orientation]
    photograph, stored = examine("x", content, ALL)
    upright = Image.open(io.BytesIO(stored))
    assert (photograph.converted, photograph.format, upright.format) == ("rotated", "PNG", "PNG")
    assert 0x0112 not in upright.getexif()
    expected = np.asarray(image.transpose(method), np.int16)
    assert np.abs(np.asarray(upright) - expected).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_an_upright_or_invalid_orientation_is_no_rotation(orientation: int, picture: Picture) -> None:
    examine("x", encoded(picture(0), "JPEG", exif=exif(orientation)), PARAMS)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_grey_picture_is_refused_or_converted_to_rgb(mode: str, picture: Picture) -> None:
    grey = picture(0).convert(mode)
    assert refusal(encoded(grey)).reason == "grey"
    assert np.array_equal(stored_pixels(encoded(grey), ALL), np.asarray(grey.convert("RGB")))


def test_a_transparent_picture_is_refused_or_composed_over_white(picture: Picture) -> None:
    image = picture(0).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    assert refusal(encoded(image)).reason == "transparent"
    stored = stored_pixels(encoded(image), ALL)
    colour, alpha = np.asarray(image, np.float64)[..., :3], np.asarray(image, np.float64)[..., 3:] / 255
    assert np.abs(stored - (colour * alpha + 255 * (1 - alpha))).max() <= 1


def test_a_picture_with_one_transparent_colour_is_transparent(picture: Picture) -> None:
    assert refusal(encoded(picture(0), transparency=(1, 2, 3))).reason == "transparent"
    assert refusal(encoded(picture(0).convert("LA"))).reason == "transparent"
    assert "and is grey" in refusal(encoded(picture(0).convert("LA"))).detail


def test_a_cmyk_picture_is_refused_or_converted_to_rgb(picture: Picture) -> None:
    image = picture(0).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        assert refusal(encoded(image, kind)).reason == "cmyk"
    assert np.array_equal(stored_pixels(encoded(image, "TIFF"), ALL), np.asarray(image.convert("RGB")))


def test_a_16_bit_rgb_picture_is_refused_or_reduced_to_its_upper_bits(picture: Picture) -> None:
    pixels = np.asarray(picture(0)).astype(np.uint16) * 256 + 99
    assert refusal(png_16_bit(pixels)).reason == "16-bit"
    photograph, _ = examine("x", png_16_bit(pixels), ALL)
    assert (photograph.bit_depth, photograph.converted) == (8, "16-bit")
    assert np.array_equal(stored_pixels(png_16_bit(pixels), ALL), np.asarray(picture(0)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_16_bit_grey_picture_has_both_reasons(kind: str, picture: Picture) -> None:
    grey = np.asarray(picture(0).convert("L"))
    content = encoded(Image.fromarray(grey.astype(np.uint16) * 256 + 7), kind)
    assert refusal(content).reason == "16-bit"
    assert refusal(content, replace(PARAMS, convert=("16-bit",))).reason == "grey"
    assert examine("x", content, ALL)[0].converted == "16-bit,grey"
    assert np.array_equal(stored_pixels(content, ALL), np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixel_modes_without_a_range_are_unsupported(mode: str, picture: Picture) -> None:
    content = encoded(picture(0).convert("L").convert(mode), "TIFF")
    assert refusal(content, ALL).reason == "unsupported"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_files_with_several_frames_or_pages_are_refused(kind: str, picture: Picture) -> None:
    content = encoded(picture(0), kind, save_all=True, append_images=[picture(1), picture(2)])
    assert refusal(content, ALL).reason == "animated"
    assert "3 frames or pages" in refusal(content, ALL).detail


def test_the_second_picture_in_the_jpeg_of_a_camera_is_no_animation(picture: Picture) -> None:
    content = encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)])
    assert Image.open(io.BytesIO(content)).n_frames == 2
    photograph, stored = examine("x", content, PARAMS)
    assert (photograph.format, photograph.file[-4:], stored) == ("JPEG", ".jpg", content)


def test_a_palette_is_refused_even_if_all_kinds_are_converted(picture: Picture) -> None:
    for kind in ("PNG", "GIF"):
        assert refusal(encoded(picture(0).quantize(64), kind), ALL).reason == "palette"


def test_a_kind_is_converted_only_if_the_parameters_name_it(picture: Picture) -> None:
    content = encoded(picture(0).convert("L"), "JPEG", exif=exif(6))
    assert refusal(content, replace(PARAMS, convert=("grey",))).reason == "rotated"
    assert examine("x", content, ALL)[0].converted == "grey,rotated"


def test_converted_pictures_have_no_metadata(picture: Picture) -> None:
    content = encoded(picture(0).convert("L"), icc_profile=b"a profile of grey", exif=exif(1), dpi=(1, 1))
    assert not Image.open(io.BytesIO(examine("x", content, ALL)[1])).info


@settings(max_examples=20, deadline=None)
@given(height=st.integers(6, 60), width=st.integers(6, 60), strip=st.integers(5, 70), seed=st.integers(0, 99))
def test_texture_agrees_with_the_region_mask_for_strips_of_any_height(
    height: int, width: int, strip: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels[:, : width // 2] //= 40
    luma = torch.from_numpy(pixels / 255) @ torch.tensor((0.2989, 0.587, 0.114), dtype=torch.float64)
    deviation = local_deviation(luma[None, None], 11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.ingest.photograph._ROWS_AT_ONCE", strip)
        mean, share = texture(pixels)
    assert mean == pytest.approx(deviation.mean().item(), abs=1e-6)
    assert share == pytest.approx((deviation >= 0.025).double().mean().item(), abs=1e-6)


def test_a_flat_picture_has_no_texture() -> None:
    assert texture(np.full((50, 50, 3), 77, np.uint8)) == (0, 0)


@pytest.mark.parametrize("deviation", [0, 3])
def test_a_photograph_without_texture_is_refused_as_flat(deviation: float) -> None:
    pixels = np.random.default_rng(0).normal(240, deviation, (96, 112, 1)).clip(0, 255).astype(np.uint8)
    content = encoded(Image.fromarray(pixels.repeat(3, 2)))
    found = refusal(content)
    assert found.reason == "flat"
    assert found.detail.endswith("(blank, burnt out or out of focus): leave it out")


def test_a_flat_photograph_with_one_textured_corner_is_accepted() -> None:
    pixels = np.full((96, 112, 3), 255, np.uint8)
    pixels[:8, :8] = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    photograph, _ = examine("a.png", encoded(Image.fromarray(pixels)), PARAMS)
    assert 0 < photograph.texture_share < 0.05
