"""Images of any number of channels: read as their own libraries read them, fitted channel by channel, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from pretune.data.survey.images import _reading_of_channels, _rising
from pretune.search_spaces import schema
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict
from pretune.trainables.data import sources
from pretune.trainables.data.decode.channels import channels_last, eight_bit
from pretune.trainables.data.decode.fitting import fit_image
from pretune.trainables.data.decode.images import _in_range, read_bands
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.listing import Reading
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder, build_unet
from pretune.trainables.views import color
from pretune.trainables.views.two_views import make_views

DATA: TypeAdapter[Any] = TypeAdapter(schema.Data)


def folder(root: Path, **changes: Any) -> Any:
    return DATA.validate_python({"dataset": "image-folder", "root": str(root), "cache_size": 8} | changes)


def noise(channels: int, dtype: Any = np.uint16, height: int = 9, width: int = 13) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 60000 if dtype == np.uint16 else 256, (height, width, channels), dtype)


def read(path: Path, channels: int, **reading: Any) -> NDArray[np.uint8]:
    bands = read_bands(path, reading=Reading(channels=channels, **reading))
    return np.stack([np.asarray(band) for band in bands], axis=-1)


# --------------------------------------------------------------------------------------------------------------- files

GREY = {"photometric": "minisblack"}
WAYS: dict[str, Any] = {  # how (H, W, C) may lie in a file
    "interleaved": lambda path, x: tifffile.imwrite(path, x, planarconfig="contig", **GREY),
    "plane by plane": lambda path, x: tifffile.imwrite(path, np.moveaxis(x, 2, 0), planarconfig="separate", **GREY),
    "a page for each": lambda path, x: tifffile.imwrite(path, np.moveaxis(x, 2, 0), **GREY),
    "compressed": lambda path, x: tifffile.imwrite(path, x, planarconfig="contig", compression="zlib", **GREY),
    "tiles": lambda path, x: tifffile.imwrite(path, x, planarconfig="contig", tile=(16, 16), **GREY),
    "big": lambda path, x: tifffile.imwrite(path, x, planarconfig="contig", bigtiff=True, **GREY),
    "other bytes": lambda path, x: tifffile.imwrite(path, x, planarconfig="contig", byteorder=">", **GREY),
    "array": lambda path, x: np.save(path.with_suffix(".npy"), x),
    "array, channels first": lambda path, x: np.save(path.with_suffix(".npy"), np.moveaxis(x, 2, 0)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [4, 6])
def test_every_way_to_store_channels_gives_the_same_image(tmp_path: Path, way: str, channels: int) -> None:
    pixels = noise(channels)
    WAYS[way](tmp_path / "a.tif", pixels)
    (path,) = tmp_path.iterdir()
    assert (read(path, channels) == (pixels.astype(np.int64) + 128) // 257).all()


def test_overviews_of_a_geotiff_are_no_pages(tmp_path: Path) -> None:
    pixels = noise(4)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, planarconfig="contig", subifds=0, **GREY)
        file.write(np.ascontiguousarray(pixels[::2, ::2]), planarconfig="contig", subfiletype=1, **GREY)
    assert read(tmp_path / "a.tif", 4).shape == pixels.shape


def test_what_pillow_reads_has_the_channels_of_its_mode(tmp_path: Path) -> None:
    pixels = noise(4, np.uint8)
    Image.fromarray(pixels, mode=None).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", 4) == pixels).all()  # opacity is one of the four
    Image.fromarray(pixels[..., 0]).save(tmp_path / "g.png")
    assert (read(tmp_path / "g.png", 1) == pixels[..., :1]).all()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((9, 13, 5), np.uint8), r"holds an array of \(9, 13, 5\), and `channels: 4` asks for"),
        (np.zeros((0, 13, 4), np.uint8), "holds an array of"),
        (np.zeros((2, 9, 13, 4), np.uint8), "holds an array of"),
        (np.zeros((9, 13), np.uint8), "holds an array of"),
        (np.full((9, 13, 4), 300, np.uint16), "16-bit grey whose largest value is 300"),
        (np.full((9, 13, 4), 0.5, np.float32), "floating-point pixels have no fixed range"),
        (np.full((9, 13, 4), 70000, np.int64), "beyond 16 bits"),
        (np.full((9, 13, 4), None), "not an .npy array that can be read"),
    ],
)
def test_other_arrays_are_refused_in_a_sentence(tmp_path: Path, array: Any, said: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(BadFileError, match=said):
        read(tmp_path / "a.npy", 4)
    with pytest.raises(DataError, match="none of the 1 images"):
        load_images(folder(tmp_path, channels=4), None, tmp_path.parent / "cache")


@pytest.mark.parametrize("content", [b"II*\0", b"II*\0\x08\0\0\0\xff\xff", b"\x93NUMPY", b"", b"x"])
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(BadFileError):
        read(tmp_path / f"a{suffix}", 4)


def test_several_pages_of_channels_ask_for_one(tmp_path: Path) -> None:
    pixels = noise(4)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for shift in (0, 1):
            file.write(np.roll(pixels, shift, 0), planarconfig="contig", **GREY)
    with pytest.raises(BadFileError, match="has 2 pages"):
        read(tmp_path / "a.tif", 4)
    second = (np.roll(pixels, 1, 0).astype(np.int64) + 128) // 257
    assert (read(tmp_path / "a.tif", 4, page=2) == second).all()
    with pytest.raises(BadFileError, match=r"pages; page . does not exist"):
        read(tmp_path / "a.tif", 4, page=3)


# --------------------------------------------------------------------------------------------------------------- range


@given(st.integers(1, 6), st.integers(0, 100), st.integers(1, 60000))
def test_each_channel_has_the_range_that_is_given_for_it(channels: int, low: int, width: int) -> None:
    """As `value_range` of a grey image does: Pillow's way is the reference."""
    pixels = noise(channels)
    ranges = tuple((float(low + i), float(low + i + width)) for i in range(channels))
    made = eight_bit(pixels, Reading(channels=channels, value_range=ranges if channels > 1 else ranges[0]))
    for i, given_range in enumerate(ranges):
        grey = _in_range(Image.fromarray(pixels[..., i]), Reading(value_range=given_range))
        assert (made[..., i] == np.asarray(grey)).all()


def test_percentiles_are_those_of_each_channel() -> None:
    pixels = noise(3)
    made = eight_bit(pixels, Reading(channels=3, percentiles=(2, 98)))
    for i in range(3):
        grey = _in_range(Image.fromarray(pixels[..., i]), Reading(percentiles=(2, 98)))
        assert (made[..., i] == np.asarray(grey)).all()


@given(st.integers(2, 5), st.integers(2, 5), st.integers(2, 5))
def test_the_last_axis_is_of_channels_where_both_could_be(height: int, width: int, channels: int) -> None:
    pixels = np.zeros((height, width, channels), np.uint8)
    assert channels_last(pixels, channels).shape == (height, width, channels)


# ---------------------------------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_each_channel_is_fitted_as_a_grey_image_is(tmp_path: Path, fit: str) -> None:
    """Resident and streamed alike."""
    pixels = noise(5, np.uint8, 12, 20)
    (tmp_path / "d").mkdir()
    for i in range(3):
        np.save(tmp_path / "d" / f"{i}.npy", np.roll(pixels, i, 0))
    expected = [
        np.asarray(fit_image(Image.fromarray(np.roll(pixels, 1, 0)[..., c]), 8, fit))  # type: ignore[arg-type]
        for c in range(5)
    ]
    for source in ("resident", "streaming"):
        settings = folder(tmp_path / "d", channels=5, fit=fit, source=source)
        digest, _ = sources.prepare(settings, None, tmp_path / source)
        found = sources.open_set(settings, digest, None, tmp_path / source)
        assert found.images.shape == (3, 8, 8, 5)
        assert (found.images[1] == np.stack(expected, axis=-1)).all()


def test_arrays_are_images_only_where_channels_are_named(tmp_path: Path) -> None:
    """A stray array beside photographs is none of them, and the set keeps its digest."""
    (tmp_path / "d").mkdir()
    Image.fromarray(noise(3, np.uint8)).save(tmp_path / "d" / "a.png")
    before = content_digest(folder(tmp_path / "d"), None)
    np.save(tmp_path / "d" / "b.npy", noise(3))
    assert content_digest(folder(tmp_path / "d"), None) == before
    assert content_digest(folder(tmp_path / "d", channels=3), None) != before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 4, "value_range": [[0, 1], [0, 2]]}, "value_range has 2 ranges, and channels is 4"),
        ({"value_range": [[0, 1], [0, 2]]}, "2 ranges, and channels is not given"),
        ({"channels": 2, "value_range": [[0, 1], [3, 2]]}, r"value_range: \[3.0, 2.0\] should rise"),
        ({"channels": 4, "background": [0, 0, 0]}, "background is of colour images"),
        ({"channels": 4, "regions": {"name": "slic"}}, "regions is of colour images"),
        ({"channels": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        folder(Path("d"), **changes)


# -------------------------------------------------------------------------------------------------------------- models

MODELS: dict[str, dict[str, Any]] = {
    "unet": {"widths": [4, 8]},
    "conrec-unet": {"widths": [4, 8]},
    "resnet-unet": {"depth": 18},
    "resnet-head": {"depth": 18},
    "timm-unet": {"backbone": "mobilenetv3_small_050"},
    "vit-pyramid": {"backbone": "test_vit3", "pyramid_width": 8, "decoder_width": 4},
}


def model_of(name: str, channels: int | None) -> Any:
    return TypeAdapter(schema.Model).validate_python({"name": name, "channels": channels} | MODELS[name])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_every_model_of_images_takes_any_number_of_channels(name: str, channels: int) -> None:
    network = build_unet(model_of(name, channels), 2).eval()
    assert network.encoder.channels == channels
    with torch.no_grad():
        assert network(torch.rand(1, channels, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("name", MODELS)
def test_three_channels_are_the_default_and_change_no_identity(name: str) -> None:
    assert model_of(name, 3) == model_of(name, None)
    assert "channels" not in model_of(name, 3).model_dump(mode="json")
    assert model_of(name, 4).model_dump(mode="json")["channels"] == 4


@pytest.mark.parametrize("method", sorted(name for name, facts in schema.FACTS.items() if facts.trains))
def test_every_method_trains_on_five_channels(method: str) -> None:
    """But those that need maps of colour images, which a set of channels cannot have."""
    if set(schema.FACTS[method].requires) & {"regions", "depth"}:
        pytest.skip("maps are made of colour images")
    small = dict.fromkeys(("hidden", "dim", "bottleneck", "prototypes"), 8)
    settings = TypeAdapter(schema.Pretrain).validate_python({
        "data": "d", "epochs": 1, "batch_size": 4, "views": {"size": 16, "crop": [0.5, 1.0], "gray": 0.5},
        "method": {"name": method}
        | {k: v for k, v in small.items() if k in schema_of(method).model_fields}
        | {k: v for k, v in {"queue": 8, "bn_splits": 1, "local_size": 8, "patch": 4, "pooling": "average"}.items()
           if k in schema_of(method).model_fields},
    })  # fmt: skip
    model = model_of("unet", 5)
    made = build_method(
        settings.method, settings.views, Parts(build_encoder(model), lambda: build_decoder(model), 2, 2)
    )
    assert isinstance(made, torch.nn.Module)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 20, 20, 5), np.uint8))
    loss, _ = made(batch_of(made, images), 0.0)
    loss.backward()
    assert torch.isfinite(loss)


def schema_of(method: str) -> Any:
    return next(
        one for one in vars(schema).values()
        if isinstance(one, type) and getattr(one, "facts", None) is schema.FACTS[method]
    )  # fmt: skip


def batch_of(method: Any, images: torch.Tensor) -> Any:
    from pretune.trainables.methods.protocol import Batch
    from pretune.trainables.views.random import uniforms
    from pretune.trainables.views.two_views import views_of

    indices = np.arange(len(images))
    return Batch(
        views_of(images, indices, method.recipes, 0, 0),
        lambda purpose, count: uniforms(0, purpose, 0, indices, 0, count),
        images=images,
        labels=torch.arange(len(images)) % 2,
        masks=images[..., 0] % 2,
    )


def test_a_model_of_other_channels_than_its_data_is_refused(tiny: dict[str, Any]) -> None:
    tiny["model"] = {"name": "unet", "widths": [4, 8], "channels": 4}
    with pytest.raises(StudyError, match=r"takes 4 channels, .*scenes have 3"):
        from_dict(tiny)


# --------------------------------------------------------------------------------------------------------------- views


def test_of_other_channels_grey_is_the_mean_and_there_is_no_hue() -> None:
    x = torch.rand(2, 5, 6, 6)
    half = torch.full((2,), 0.5)
    assert torch.equal(color.adjust_hue(x, half), x)
    torch.testing.assert_close(color.to_gray(x), x.mean(1, keepdim=True).expand(-1, 5, -1, -1))
    torch.testing.assert_close(color.adjust_brightness(x, half), x / 2)
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(color.adjust_contrast(x, half), (x + mean) / 2)
    torch.testing.assert_close(color.adjust_saturation(x, half), (x + x.mean(1, keepdim=True)) / 2)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(5)))
def test_views_treat_all_channels_alike(order: list[int]) -> None:
    """A permutation of the channels permutes the views' channels."""
    recipe = schema.Views(size=16, color_jitter=1.0, gray=0.3, blur=0.5)
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 20, 20, 5), np.uint8))
    plain = make_views(images, np.arange(3), recipe, 0, 0)
    permuted = make_views(images[..., order].contiguous(), np.arange(3), recipe, 0, 0)
    for a, b in zip(plain, permuted, strict=True):
        torch.testing.assert_close(a.pixels[:, order], b.pixels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [3, 5])
def test_grey_views_go_on_to_the_next_transform(channels: int) -> None:
    """All samples of a block grey, some of them blurred: torch refuses to write into an expanded tensor."""
    recipe = schema.Views(size=16, color_jitter=0.0, gray=1.0, blur=0.5)
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (8, 20, 20, channels), np.uint8))
    for view in make_views(images, np.arange(8), recipe, 0, 0):
        torch.testing.assert_close(view.pixels, view.pixels[:, :1].expand(-1, channels, -1, -1))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3), (3, 8, 9), (8, 9, 5), (2, 8, 9, 3), (8,), (0, 9)])
def test_an_array_that_is_no_image_is_refused_in_a_sentence(kind: type, shape: tuple[int, ...]) -> None:
    """As a file of it is, and never by an exception of Pillow's."""
    if kind is np.uint8 and shape in [(8, 9), (8, 9, 3)]:
        assert read_bands(np.full(shape, 7, kind))[0].getpixel((8, 7)) == (7, 7, 7)
    elif kind in (np.uint16, np.int64) and shape == (8, 9):
        assert read_bands(np.full(shape, 257 * 200, kind))[0].getpixel((8, 7)) == (200, 200, 200)
    else:
        with pytest.raises(BadFileError):
            read_bands(np.zeros(shape, kind))


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.0, 1.23456, [0.0, 1.235]),
        (7.0, 7.0, [7.0, 8.0]),  # an even channel
        (10000.1, 10000.9, [10000.1, 10000.9]),
        (29315.0, 29318.0, [29315.0, 29318.0]),
        (-5.00001, -5.0, [-5.00001, -5.0]),
    ],
)
def test_the_black_and_white_that_init_writes_rise(low: float, high: float, shown: list[float]) -> None:
    assert _rising(low, high) == shown


def test_of_images_without_a_finite_pixel_init_writes_no_range(tmp_path: Path) -> None:
    pixels = np.zeros((9, 8, 5), np.float32)
    pixels[..., 2] = np.nan
    np.save(tmp_path / "a.npy", pixels)
    assert list(_reading_of_channels([tmp_path / "a.npy"], 5)) == ["channels: 5"]
