"""Pictures of every kind, as people have them: correct, or named in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import noise, save_picture

from fvlm.data.dataset import read_picture
from fvlm.errors import InputError
from fvlm.predict.pictures import MAX_PIXELS, as_pictures, as_pixels, find_pictures


def pixels_of(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def test_a_plain_file_has_the_pixels_that_the_stages_read(tmp_path):
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp"):
        path = save_picture(tmp_path / name)
        assert torch.equal(as_pixels(path), read_picture(path))


def test_a_picture_is_the_same_from_file_pil_array_and_tensor(tmp_path):
    path, array = save_picture(tmp_path / "a.png"), noise(40, 60)
    expected = pixels_of(array)
    for given in (path, str(path), Image.open(path), array, expected, expected.float() / 255, expected.double() / 255):
        assert torch.equal(as_pixels(given), expected)


@pytest.mark.parametrize("turned", ["read-only", "backwards", "strided", "Fortran"])
def test_arrays_may_lie_in_memory_as_they_like(turned):
    array = noise(40, 60)
    given = {
        "read-only": np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape),
        "backwards": array[:, ::-1],
        "strided": array[::2, ::3],
        "Fortran": np.asfortranarray(array),
    }[turned]
    assert torch.equal(as_pixels(given), pixels_of(np.ascontiguousarray(given)))


def test_an_exif_orientation_of_a_file_is_applied_and_that_of_a_pil_image_is_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = save_picture(tmp_path / "a.png", exif=exif)
    stored = pixels_of(noise(40, 60))
    assert torch.equal(as_pixels(path), stored.rot90(-1, (1, 2)))
    with Image.open(path) as picture:
        assert torch.equal(as_pixels(picture), stored)


def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path):
    rgba = np.dstack([noise(4, 6), np.full((4, 6), 255, np.uint8)])
    rgba[0, :, 3], rgba[1, :, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    pixels = as_pixels(tmp_path / "rgba.png")
    assert (pixels[:, 0] == 255).all()
    assert torch.equal(pixels[:, 2:], pixels_of(rgba[2:, :, :3].copy()))
    half = (rgba[1, :, :3] * (128 / 255) + 255 * (127 / 255)).round()
    assert np.abs(pixels[:, 1].numpy().T - half).max() <= 1


def test_a_palette_with_a_transparent_entry_is_read(tmp_path):
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    picture.paste(0, (0, 0, 6, 2))
    picture.save(tmp_path / "p.png", transparency=0)
    pixels = as_pixels(tmp_path / "p.png")
    assert pixels[:, 0, 0].tolist() == [255] * 3 and pixels[:, 3, 0].tolist() == [10, 200, 30]


def test_grey_of_16_bits_is_scaled_and_not_cut_off(tmp_path):
    grey = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        assert torch.equal(as_pixels(tmp_path / name)[0].flatten(), torch.arange(256, dtype=torch.uint8))


def png(size_hw: tuple[int, int], bits: int, data: bytes) -> bytes:
    """A PNG of RGB, of any size that is claimed, whatever `data` is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", size_hw[1], size_hw[0], bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_colours_of_16_bits_keep_their_upper_byte(tmp_path):
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in noise(4, 6))
    (tmp_path / "a.png").write_bytes(png((4, 6), 16, zlib.compress(rows)))
    assert torch.equal(as_pixels(tmp_path / "a.png"), pixels_of(noise(4, 6)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "HSV", "RGBA", "P", "I;16"])
def test_every_mode_of_pil_becomes_rgb(mode):
    pixels = as_pixels(Image.new(mode, (6, 4)))
    assert pixels.shape == (3, 4, 6) and pixels.dtype == torch.uint8


def test_a_cmyk_jpeg_looks_as_it_did(tmp_path):
    flat = Image.new("RGB", (32, 24), (200, 60, 30))
    flat.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert (as_pixels(tmp_path / "a.jpg").float() - torch.tensor([200, 60, 30.0])[:, None, None]).abs().max() <= 4


def test_of_an_animation_the_first_picture_counts(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        red, _, blue = as_pixels(tmp_path / name)[:, 0, 0].tolist()
        assert red > 250 and blue < 5


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5), (50, 20_000)])
def test_odd_sizes_are_read(tmp_path, size_hw):
    assert as_pixels(save_picture(tmp_path / "a.png", *size_hw)).shape == (3, *size_hw)


def broken(kind: str) -> bytes:
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    return {
        "zero bytes": b"",
        "text": b"this is no picture\n",
        "truncated": whole.getvalue()[: len(whole.getvalue()) // 2],
        "only a head": whole.getvalue()[:20],
        "noise after a PNG's head": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "webp's head": b"RIFF\x10\0\0\0WEBPVP8 \0\0",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["zero bytes", "text", "truncated", "only a head", "noise after a PNG's head", "webp's head", "svg"],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, kind):
    path = tmp_path / "broken.jpg"
    path.write_bytes(broken(kind))
    with pytest.raises(InputError, match=r"broken\.jpg: expected a whole picture, but it cannot be decoded") as caught:
        as_pixels(path)
    assert "\n" not in str(caught.value)


def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch):
    def explode(self):
        raise AttributeError("inside\nPillow")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    with pytest.raises(InputError, match=r"cannot be decoded \(inside Pillow\)"):
        as_pixels(save_picture(tmp_path / "a.tif"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 30_000, 2**30])
def test_a_decompression_bomb_is_named_before_it_is_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png((side, side), 8, zlib.compress(bytes(10_000))))
    with pytest.raises(InputError, match=r"bomb\.png: (expected at most 89,478,485 pixels|.*decompression bomb)"):
        as_pixels(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="expected at most"):
        as_pixels(np.broadcast_to(np.uint8(0), (1, MAX_PIXELS + 1, 3)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("missing.jpg", "missing.jpg: picture not found"),
        (".", r"\.: a folder, expected a picture"),
        (7, "expected a picture: .* got int"),
        (np.zeros((4, 6, 3)), r"expected an array \(H, W, 3\) of uint8 RGB.* got \(4, 6, 3\) of float64"),
        (np.zeros((3, 4, 6), np.uint8), r"got \(3, 4, 6\) of uint8"),
        (np.zeros((4, 6, 4), np.uint8), r"got \(4, 6, 4\) of uint8"),
        (np.zeros((0, 6, 3), np.uint8), "got 6 x 0 pixels"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8), r"expected a tensor \(3, H, W\)"),
        (torch.zeros(3, 4, 6, dtype=torch.int64), "of torch.int64"),
        (torch.full((3, 4, 6), 1.5), r"in \[0, 1\], not normalised, got 1.5 to 1.5"),
        (torch.full((3, 4, 6), float("nan")), r"in \[0, 1\], not normalised, got nan"),
        (Image.new("F", (6, 4)), "floating-point pixels"),
        (Image.fromarray(np.full((4, 6), -1, np.int32)), "expected values of 16 bits at most, got -1 to -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,  # a picture's own text has its address
)
def test_what_is_no_picture_is_said_with_what_came(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        as_pixels(given)


def test_a_single_picture_is_told_from_a_batch():
    array = noise(4, 6)
    for single in ("a.jpg", Image.new("RGB", (6, 4)), array, pixels_of(array)):
        assert as_pictures(single)[1] is True
    for batch in ([array], ("a.jpg", array), np.stack([array] * 2), torch.zeros(2, 3, 4, 6), iter([array])):
        pictures, alone = as_pictures(batch)
        assert alone is False and len(pictures) in (1, 2)
    with pytest.raises(InputError, match="expected a picture or a list of pictures, got NoneType"):
        as_pictures(None)  # type: ignore[arg-type]


def test_arguments_mean_files_folders_and_patterns_each_picture_once(tmp_path, monkeypatch):
    for name in (
        "b/2.png",
        "b/1.JPG",
        "b/c/3.webp",
        "b/notes.txt",
        "b/.hidden.png",
        "b/.git/4.png",
        "[x].png",
        "d.dat",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_pictures(["b"]) == ["b/1.JPG", "b/2.png", "b/c/3.webp"]
    assert find_pictures(["b/*.png", "b", "[x].png", "d.dat"]) == [
        "b/2.png",
        "b/1.JPG",
        "b/c/3.webp",
        "[x].png",
        "d.dat",
    ]
    assert find_pictures(["**/*.webp"]) == ["b/c/3.webp"]


def test_all_arguments_that_mean_nothing_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        find_pictures(["empty", "no.jpg", "*.png"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "empty: expected a picture, a folder or a pattern, found a folder without" in lines[0]
    assert lines[1].startswith("no.jpg:") and lines[2].startswith("*.png:")
