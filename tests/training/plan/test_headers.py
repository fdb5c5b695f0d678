"""Channels and bits from files' headers."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from hub_unets.training.errors import UserError
from hub_unets.training.plan.headers import Header, read_header

GREY = np.zeros((40, 50), np.uint8)


def saved(folder, save):
    save(folder / "a")
    return read_header({"bytes": None, "path": str(folder / "a")}, "a")


@pytest.mark.parametrize(
    ("mode", "channels", "bits"),
    [("L", 1, 8), ("LA", 1, 8), ("RGB", 3, 8), ("RGBA", 3, 8), ("P", 3, 8), ("1", 1, 1), ("I;16", 1, 16)],
)
def test_modes_of_png(mode, channels, bits):
    stream, image = io.BytesIO(), Image.fromarray(GREY.astype(np.uint16) if mode == "I;16" else GREY)
    (image if mode == "I;16" else image.convert(mode)).save(stream, format="PNG")
    header = read_header({"bytes": stream.getvalue(), "path": None}, "a")
    assert header == Header(channels, bits) and header.is_rgb == (bits <= 8)


def test_a_colour_png_of_sixteen_bits_which_pillow_shows_as_eight():
    content = cv2.imencode(".png", np.zeros((40, 50, 3), np.uint16))[1].tobytes()
    assert read_header({"bytes": content, "path": None}, "a") == Header(3, 16)


def test_pages_and_arrays(tmp_path):
    pages = [Image.fromarray(GREY.astype(np.uint16)) for _ in range(4)]
    options = {"format": "TIFF", "save_all": True, "append_images": pages[1:]}
    assert saved(tmp_path, lambda path: pages[0].save(path, **options)) == Header(4, 16)
    assert saved(tmp_path, lambda path: Image.fromarray(GREY / np.float32(2)).save(path, "TIFF")) == Header(1, 32)
    arrays = [np.zeros((40, 50, 7), np.uint16), np.zeros((7, 40, 50), np.float32), GREY]
    headers = [saved(tmp_path, lambda path, array=array: path.write_bytes(_bytes_of(array))) for array in arrays]
    assert headers == [Header(7, 16, False), Header(7, 32, False), Header(1, 8, False)]
    assert not any(header.is_rgb for header in headers)


def _bytes_of(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_file_of_no_known_kind_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"a \(.*\): its channels and bits can't be told \(cannot identify .*num_channels"
    ):
        saved(tmp_path, lambda path: path.write_bytes(b"no picture"))
