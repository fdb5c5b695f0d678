"""Channels and bits from files' headers."""

import io

import numpy as np
import pytest
from PIL import Image

from hub_unets.training.plan.headers import read_header

GREY = np.zeros((4, 5), np.uint8)


@pytest.mark.parametrize(
    ("mode", "header"),
    [("L", (1, 8)), ("LA", (1, 8)), ("RGB", (3, 8)), ("RGBA", (3, 8)), ("P", (3, 8)), ("1", (1, 1))],
)
def test_modes_of_png(mode, header):
    stream = io.BytesIO()
    Image.fromarray(GREY).convert(mode).save(stream, format="PNG")
    assert read_header({"bytes": stream.getvalue(), "path": None}, "a") == header


def test_sixteen_bits_pages_and_floats(tmp_path):
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    pages = [Image.fromarray(GREY.astype(np.uint16)) for _ in range(4)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 7), np.uint16))
    headers = [
        read_header({"bytes": None, "path": str(tmp_path / name)}, "a")
        for name in ("a.png", "a.tif", "b.tif", "a.npy")
    ]
    assert headers == [(1, 16), (1, 32), (4, 16), (7, 16)]
