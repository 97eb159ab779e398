"""Decoding: every kind of file becomes upright 8-bit RGB; masks stay indices; bad files say why."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.decode import opening
from pretune.trainables.data.decode.entry import decode
from pretune.trainables.data.decode.fitting import Fit, fit_image, fit_mask, size_of
from pretune.trainables.data.decode.images import read_image
from pretune.trainables.data.decode.masks import read_color_mask, read_mask
from pretune.trainables.data.errors import BadFileError
from pretune.trainables.data.listing import Colors, Entry, Listing, Member, Pack
from pretune.trainables.data.resident.hashes import UNREADABLE, hash_files

ORIENTATION = 0x0112
IDENTITY = {0: 0, 1: 1, 2: 2}


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def rgb(path: Path) -> list[list[list[int]]]:
    return np.asarray(read_image(path)).tolist()


def test_rgb_is_kept_as_it_is(tmp_path: Path) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert rgb(saved(tmp_path / "a.png", Image.fromarray(pixels))) == pixels.tolist()


def test_grey_is_three_equal_channels(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 200]], np.uint8))
    assert rgb(saved(tmp_path / "a.png", grey)) == [[[0, 0, 0], [200, 200, 200]]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    """65535 -> 255 and 257 per step: 32896 / 257 = 128."""
    deep = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert rgb(saved(tmp_path / "a.png", deep)) == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("largest", [1, 255, 4095])
def test_sixteen_bits_that_hold_eight_or_twelve_are_refused(tmp_path: Path, largest: int) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(np.full((2, 2), largest, np.uint16)))
    with pytest.raises(BadFileError, match=f"largest value is {largest} of 65535 would turn black"):
        read_image(path)
    assert rgb(saved(tmp_path / "b.png", Image.fromarray(np.zeros((2, 2), np.uint16)))) == [[[0, 0, 0]] * 2] * 2


@pytest.mark.parametrize(("orientation", "size", "known"), [(3, (4, 2), False), (6, (4, 4), False), (6, (4, 2), True)])
def test_a_turned_image_whose_mask_may_be_turned_or_not_is_named(
    tmp_path: Path, orientation: int, size: tuple[int, int], known: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = size if orientation == 3 else size[::-1]
    saved(tmp_path / "a.jpg", Image.new("RGB", size, (9, 9, 9)), exif=exif)
    saved(tmp_path / "a.png", Image.new("L", upright))
    pair = Entry("a", tmp_path / "a.jpg", tmp_path / "a.png")
    found = decode(pair, Listing(tmp_path, (pair,), mask_values={0: 0}), None, 4, "squash")
    assert bool(found.problems) != known
    assert known or f"a.jpg: turned by EXIF orientation {orientation}, and nothing shows" in found.problems[0]


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert rgb(saved(tmp_path / "a.png", image)) == [[[10, 20, 30], [200, 100, 50]]]


def test_a_palette_with_transparency_is_laid_over_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert rgb(saved(tmp_path / "a.png", image, transparency=b"\x00\xff")) == [[[0, 0, 0], [200, 100, 50]]]


def test_transparency_is_laid_over_black(tmp_path: Path) -> None:
    """Whatever colour hides under a transparent pixel does not appear; half of 200 is 100."""
    pixels = np.array([[[200, 100, 50, 255], [255, 255, 255, 0], [200, 100, 50, 128]]], np.uint8)
    (row,) = rgb(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert row[:2] == [[200, 100, 50], [0, 0, 0]]
    assert row[2] == pytest.approx([100, 50, 25], abs=1)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    """Full cyan alone is (0, 255, 255), up to JPEG's loss."""
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert rgb(saved(tmp_path / "a.jpg", cyan, quality=95))[8][8] == pytest.approx([0, 255, 255], abs=4)


def test_exif_orientation_turns_the_image(tmp_path: Path) -> None:
    """Orientation 6: the stored first row is the right-hand column of the picture."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    grey = np.zeros((8, 16), np.uint8)
    grey[:, :8] = 250  # left half of what is stored
    upright = np.asarray(read_image(saved(tmp_path / "a.png", Image.fromarray(grey), exif=exif)))
    assert upright.shape == (16, 8, 3)
    assert (upright[:8] == 250).all()
    assert (upright[8:] == 0).all()


def test_floating_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="no fixed range"):
        read_image(saved(tmp_path / "a.tif", Image.fromarray(np.ones((2, 2), np.float32))))


def test_a_zero_byte_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(BadFileError, match="0 bytes"):
        read_image(tmp_path / "a.jpg")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = saved(tmp_path / "a.jpg", Image.fromarray(noise)).read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFileError, match=r"damaged .*truncated"):
        read_image(tmp_path / "a.jpg")


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(BadFileError, match="not an image"):
        read_image(tmp_path / "a.jpg")


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="cannot be opened"):
        read_image(tmp_path / "missing.jpg")


def test_palette_masks_are_read_as_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 128, 0, 0, 0, 128, 0])
    mask = read_mask(saved(tmp_path / "m.png", image), {0: 0, 1: 5, 2: 255})
    assert np.asarray(mask).tolist() == [[0, 5, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_values_are_mapped(tmp_path: Path, dtype: type[np.generic]) -> None:
    mask = saved(tmp_path / "m.png", Image.fromarray(np.array([[1, 2], [3, 3]], dtype)))
    assert np.asarray(read_mask(mask, {1: 1, 2: 0, 3: 1})).tolist() == [[1, 0], [1, 1]]


def test_one_bit_masks_hold_zero_and_one(tmp_path: Path) -> None:
    mask = saved(tmp_path / "m.png", Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"))
    assert np.asarray(read_mask(mask, IDENTITY)).tolist() == [[0, 1]]


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 7), (np.uint16, 4000)])
def test_a_value_outside_the_classes_is_named(tmp_path: Path, dtype: type[np.generic], value: int) -> None:
    mask = saved(tmp_path / "m.png", Image.fromarray(np.array([[0, value]], dtype)))
    with pytest.raises(BadFileError, match=rf"outside the classes: {value} \(known: 0, 1, 2\)"):
        read_mask(mask, IDENTITY)


def test_a_black_and_white_mask_says_how_to_read_it(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(BadFileError, match=r"`mask_values: \[0, 255\]`.*`ignore: 255`"):
        read_mask(tmp_path / "m.png", {0: 0, 1: 1})
    assert np.array_equal(read_mask(tmp_path / "m.png", {0: 0, 255: 1}), [[0, 1]])
    with pytest.raises(BadFileError, match="name their classes or set `ignore:`"):
        read_mask(tmp_path / "m.png", {0: 0, 1: 1, 2: 2})


def test_a_colour_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="one class index per pixel"):
        read_mask(saved(tmp_path / "m.png", Image.new("RGB", (2, 2), (1, 1, 0))), IDENTITY)


def halves(width: int, height: int) -> Image.Image:
    """Left half 0, right half 1."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, width // 2 :] = 1
    return Image.fromarray(pixels)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_squash_and_crop_fill_the_square(fit: Literal["squash", "crop"]) -> None:
    mask = np.asarray(fit_mask(halves(32, 16), 8, fit))
    assert mask.tolist() == [[0] * 4 + [1] * 4] * 8


def test_squash_keeps_the_margins_that_crop_cuts_off() -> None:
    """32 x 16 with the outer quarters marked: squashed to 8 they are 2 columns each; the centre square has none."""
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, :8] = pixels[:, 24:] = 1
    image = Image.fromarray(pixels)
    assert np.asarray(fit_mask(image, 8, "squash"))[0].tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert not np.asarray(fit_mask(image, 8, "crop")).any()


def test_pad_keeps_the_aspect_and_ignores_the_rest() -> None:
    mask = np.asarray(fit_mask(halves(32, 16), 8, "pad"))
    assert mask.tolist() == [[255] * 8] * 2 + [[0] * 4 + [1] * 4] * 4 + [[255] * 8] * 2
    image = np.asarray(fit_image(Image.new("RGB", (16, 32), (9, 8, 7)), 8, "pad"))
    assert image[:, 2:6].tolist() == [[[9, 8, 7]] * 4] * 8
    assert not image[:, :2].any()
    assert not image[:, 6:].any()


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_an_extreme_aspect_still_gives_a_square(fit: Fit) -> None:
    assert fit_image(Image.new("RGB", (300, 1)), 8, fit).size == (8, 8)


def test_shrinking_averages_and_does_not_pick_pixels() -> None:
    """A fine checkerboard of 0 and 255 becomes even grey: antialiased."""
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    grey = np.asarray(fit_image(Image.fromarray(board.astype(np.uint8)).convert("RGB"), 8, "squash"))
    assert np.abs(grey.astype(int) - 127).max() <= 3


def entry(folder: Path) -> Entry:
    return Entry("a", folder / "a.png", folder / "m.png")


def listing(folder: Path) -> Listing:
    return Listing(folder, (entry(folder),), mask_values=IDENTITY)


def test_both_bad_files_of_a_pair_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    saved(tmp_path / "m.png", Image.new("RGB", (2, 2), (1, 1, 0)))
    problems = decode(entry(tmp_path), listing(tmp_path), None, 8, "squash").problems
    assert [problem.split(":")[0] for problem in problems] == ["a.png", "m.png"]


def test_a_mask_of_another_size_is_reported_with_both_sizes(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", Image.new("RGB", (6, 4)))
    saved(tmp_path / "m.png", Image.new("L", (4, 6)))
    (problem,) = decode(entry(tmp_path), listing(tmp_path), None, 8, "squash").problems
    assert problem.startswith("m.png: the mask is 4x6, its image 6x4")


def test_a_mask_may_follow_the_upright_image(tmp_path: Path) -> None:
    """Stored 6 x 4 and turned by EXIF to 4 x 6: the mask drawn on what is seen fits."""
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    saved(tmp_path / "a.png", Image.new("RGB", (6, 4)), exif=exif)
    saved(tmp_path / "m.png", Image.new("L", (4, 6), 1))
    image, mask, problems, *_ = decode(entry(tmp_path), listing(tmp_path), None, 8, "squash")
    assert problems == ()
    assert image is not None
    assert image.shape == (8, 8, 3)
    assert mask is not None
    assert (mask == 1).all()


def test_a_box_cuts_image_and_mask_alike(tmp_path: Path) -> None:
    """Left half 0, right half 1: the box lies within the right half."""
    saved(tmp_path / "m.png", halves(32, 16))
    saved(tmp_path / "a.png", Image.fromarray(np.asarray(halves(32, 16)) * np.uint8(200)))
    boxed = entry(tmp_path)._replace(box=(20, 4, 28, 12))
    image, mask, problems, *_ = decode(boxed, listing(tmp_path), None, 4, "squash")
    assert problems == ()
    assert image is not None
    assert image.tolist() == [[[200] * 3] * 4] * 4
    assert mask is not None
    assert mask.tolist() == [[1] * 4] * 4


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """Noise of 16 px grain, as photographs change slowly from pixel to pixel."""
    grain = np.random.default_rng(seed).integers(0, 256, (-(-height // 16) + 1, -(-width // 16) + 1, 3), np.uint8)
    return Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from(["squash", "pad", "crop"]),
    st.sampled_from([1, 3, 6]),
    st.integers(0, 9),
)
def test_a_large_jpeg_is_decoded_smaller_and_fitted_as_the_whole(
    width: int, height: int, fit: Fit, orientation: int, seed: int
) -> None:
    """Grey levels differ by little (at most 5 of 255 on average, of noise of full contrast; 0.5 of photographs), its
    size stays known, and something is left to resize: half of 65 px is not taken for 32."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    smooth(width, height, seed).save(file, "JPEG", quality=90, exif=exif)
    whole, found = read_image(file.getvalue()), read_image(file.getvalue(), (32, fit))
    assert size_of(found) == whole.size == ((height, width) if orientation == 6 else (width, height))
    deciding = max if fit == "pad" else min
    if deciding(whole.size) < 66:
        assert found.size == whole.size
    elif min(whole.size) >= 8:  # a side that an eighth leaves nothing of is divided by less
        assert 32 < deciding(found.size) <= -(-deciding(whole.size) // (2 if orientation == 1 else 1))
    fitted, expected = (np.asarray(fit_image(image, 32, fit)).astype(int) for image in (found, whole))
    assert np.abs(fitted - expected).mean() <= 5


def test_only_jpegs_of_their_own_are_decoded_smaller(tmp_path: Path) -> None:
    """A PNG cannot be; of an image that is cut by a box the box counts in whole pixels."""
    smooth(300, 200, 0).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (32, "squash")).size == (300, 200)
    smooth(300, 200, 0).save(tmp_path / "a.jpg", quality=95)
    cut = decode(Entry("a", tmp_path / "a.jpg", None, box=(100, 50, 228, 178)), listing(tmp_path), None, 32, "squash")
    expected = Image.open(tmp_path / "a.jpg").crop((100, 50, 228, 178)).resize((32, 32), Image.Resampling.BILINEAR)
    assert cut.image is not None
    assert np.abs(cut.image.astype(int) - np.asarray(expected).astype(int)).mean() <= 1


def test_a_mask_is_measured_against_the_whole_image(tmp_path: Path) -> None:
    smooth(301, 203, 0).save(tmp_path / "a.jpg")
    Image.new("L", (301, 203), 1).save(tmp_path / "good.png")
    Image.new("L", (151, 102), 1).save(tmp_path / "half.png")  # as large as the image is decoded
    good, half = (
        decode(Entry("a", tmp_path / "a.jpg", tmp_path / name), listing(tmp_path), None, 32, "pad")
        for name in ("good.png", "half.png")
    )
    assert good.problems == ()
    assert half.problems == (
        "half.png: the mask is 151x102, its image 301x203; they must have equal size (after EXIF orientation)",
    )
    assert good.image is not None
    assert good.mask is not None
    assert np.array_equal(good.mask == 255, np.asarray(good.image).max(-1) == 0)  # the same rows are padding


RULE = Colors((((0, 0, 254), 0), ((0, 0, 0), 255)), other=1, tolerance=10)


def test_mask_colours_become_classes(tmp_path: Path) -> None:
    """Blue within the tolerance is background, black is ignored, all else is foreground."""
    pixels = np.array([[[0, 0, 254], [9, 0, 245], [12, 0, 254], [3, 3, 3], [200, 180, 10]]], np.uint8)
    mask = read_color_mask(saved(tmp_path / "m.png", Image.fromarray(pixels)), RULE)
    assert np.asarray(mask).tolist() == [[0, 0, 1, 255, 1]]


def test_a_colour_without_meaning_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", Image.new("RGB", (2, 2), (7, 80, 9)))
    with pytest.raises(BadFileError, match=r"mask colour \(7, 80, 9\) has no meaning"):
        read_color_mask(path, RULE._replace(other=None))


def test_members_of_a_file_are_read_and_named_by_their_index(tmp_path: Path) -> None:
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    pack = Pack(pixels, np.stack([np.zeros((4, 4), np.uint8), np.full((4, 4), 9, np.uint8)]))
    file = tmp_path / "all.npz"
    entries = tuple(Entry(str(i), Member(file, i), Member(file, i)) for i in range(2))
    whole = Listing(tmp_path, entries, mask_values=IDENTITY)
    good = decode(entries[0], whole, lambda path: pack, 4, "squash")
    assert good.image is not None
    assert good.image[..., 0].tolist() == pixels[0].tolist()
    (problem,) = decode(entries[1], whole, lambda path: pack, 4, "squash").problems
    assert problem.startswith("all.npz[1]: mask values outside the classes: 9")


# ------------------------------------------------------------------------ files of which a part would be lost, unsaid


def tiff(pixels: NDArray[Any], extra: int | None = None) -> bytes:
    """Colour first, then channels of the kind `extra` (TIFF's ExtraSamples; None: the tag is left out)."""
    height, width, channels = pixels.shape
    data, more = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(), channels - 3
    rows = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, None), (259, 3, 1, 1), (262, 3, 1, 2)]
    rows += [(273, 4, 1, None), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(data))]
    rows += [] if extra is None or more == 0 else [(338, 3, more, extra if more == 1 else None)]
    bits = 8 + 2 + 12 * len(rows) + 4
    extras, start = bits + 2 * channels, bits + 2 * channels + 2 * more
    places = {258: bits, 273: start, 338: extras}
    out = b"II*\0" + struct.pack("<IH", 8, len(rows))
    for tag, kind, count, value in rows:
        out += struct.pack("<HHII", tag, kind, count, places[tag] if value is None else value)
    out += struct.pack("<I", 0) + struct.pack(f"<{channels}H", *[pixels.itemsize * 8] * channels)
    return out + struct.pack(f"<{more}H", *[extra or 0] * more) + data


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", [None, 0, 2])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("share", [0.9, 0.05])
def test_a_tiff_loses_no_channel_and_turns_black_with_a_word(
    dtype: type[np.generic], extra: int | None, channels: int, share: float
) -> None:
    """Four channels of unstated meaning are refused; 16 bits that hold 12 too; all else keeps its brightness."""
    pixels = np.full((4, 5, channels), int(share * np.iinfo(dtype).max), dtype)  # type: ignore[type-var]
    if channels == 4 and extra != 0:
        pixels[..., 3] = np.iinfo(dtype).max  # type: ignore[type-var]  # opaque
    if channels == 4 and extra == 0:
        with pytest.raises(BadFileError, match=r"4 channels, .* only 3"):
            read_image(tiff(pixels, extra))
    elif dtype is np.uint16 and share < 0.06:
        with pytest.raises(BadFileError, match="would turn black"):
            read_image(tiff(pixels, extra))
    else:
        found = np.asarray(read_image(tiff(pixels, extra))).astype(int)
        assert np.abs(found - share * 255).max() <= 1


def several(kind: str, count: int) -> bytes:
    held = io.BytesIO()
    first, *rest = [Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)) for i in range(count)]
    first.save(held, kind, save_all=True, append_images=rest)
    return held.getvalue()


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "GIF"])
def test_pages_and_frames_are_counted_and_refused_in_images_and_masks(kind: str, count: int) -> None:
    """../shared/cases/first-page-only: all but the first were left out without a word."""
    for read in (read_image, lambda data: read_mask(data, IDENTITY)):
        with pytest.raises(BadFileError, match=f"has {count} pages or frames, and Pretune reads one; choose it with"):
            read(several(kind, count))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_one_page_is_an_image(kind: str) -> None:
    assert read_image(several(kind, 1)).size == (8, 8)


def test_a_preview_behind_a_photo_and_smaller_copies_of_a_scan_are_no_pages() -> None:
    assert read_image(several("MPO", 2)).getpixel((0, 0)) == (0, 0, 0)
    held = io.BytesIO()
    whole, smaller = (Image.new("RGB", (side, side), (90, 0, 0)) for side in (16, 8))
    smaller.encoderinfo = {"tiffinfo": {254: 1}}
    whole.save(held, "TIFF", save_all=True, append_images=[smaller])
    assert read_image(held.getvalue()).size == (16, 16)


def test_an_image_above_pillows_limit_is_read_and_one_above_ours_says_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """../shared/cases/large-image has 182 million pixels; here limits are a thousandth of it."""
    path = saved(tmp_path / "a.png", Image.new("L", (140, 130), 7))
    assert Image.MAX_IMAGE_PIXELS is None  # Pillow's, which calls larger ones damaged
    assert opening.LARGEST >= 182_000_000
    monkeypatch.setattr(opening, "LARGEST", 140 * 130)
    assert read_image(path).size == (140, 130)
    monkeypatch.setattr(opening, "LARGEST", 140 * 130 - 1)
    with pytest.raises(BadFileError, match=r"140x130 .*above the limit"):
        read_image(path)


@pytest.mark.slow
def test_an_image_of_182_million_pixels_is_read(tmp_path: Path) -> None:
    """Pillow's sums in fixed point over 1,750 pixels a side may round a level away."""
    path = saved(tmp_path / "a.png", Image.new("L", (14000, 13000), 200))
    assert fit_image(read_image(path), 8, "squash").getpixel((3, 3)) == pytest.approx((200,) * 3, abs=1)


def test_what_is_laid_over_black_is_told(tmp_path: Path) -> None:
    for name, alpha in (("clear", 0), ("half", 128), ("opaque", 255)):
        path = saved(tmp_path / f"{name}.png", Image.new("RGBA", (4, 4), (200, 100, 50, alpha)))
        found = decode(Entry(name, path), Listing(tmp_path, ()), None, 4, "squash")
        assert found.transparent == (alpha < 255)


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_turned_image_of_any_kind_is_known_to_be_turned(mode: str, tmp_path: Path) -> None:
    """Transparency and 16 bits lost what was known of the orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    image = (
        Image.new("RGBA", (4, 4), (9, 9, 9, 99))
        if mode == "RGBA"
        else Image.fromarray(np.full((4, 4), 60000, np.uint16))
    )
    mask = saved(tmp_path / "m.png", Image.new("L", (4, 4)))
    entry = Entry("a", saved(tmp_path / "a.png", image, exif=exif), mask)
    found = decode(entry, Listing(tmp_path, (), mask_values=IDENTITY), None, 4, "squash")
    assert "turned by EXIF orientation 3" in found.problems[0]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "live.png")
    for path in (tmp_path / "live.png", Path("/dev/zero")):
        with pytest.raises(BadFileError, match="a pipe, a socket or a device"):
            read_image(path)
    assert hash_files([tmp_path / "live.png", Path("/dev/zero")], None) == [UNREADABLE, UNREADABLE]
