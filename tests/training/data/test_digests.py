"""Digests of pixels do not change with the file's format; those of files do."""

import hashlib
import io

import numpy as np
from PIL import Image

from hub_unets.training.data.digests import pair_digests, pixel_sha256
from hub_unets.training.data.reading import read_image

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def stored(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def test_the_digest_is_of_size_and_rgb_bytes():
    assert pixel_sha256(Image.fromarray(PIXELS)) == hashlib.sha256(b"3x2\n" + bytes(range(18))).hexdigest()
    turned = PIXELS.reshape(3, 2, 3)
    assert pixel_sha256(Image.fromarray(turned)) == hashlib.sha256(b"2x3\n" + bytes(range(18))).hexdigest()


def test_grey_images_count_as_rgb_and_labels_as_they_are():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert pixel_sha256(Image.fromarray(grey)) == pixel_sha256(Image.fromarray(np.stack([grey] * 3, axis=-1)))
    assert pixel_sha256(grey) == hashlib.sha256(b"3x2\n" + bytes(range(6))).hexdigest()
    assert pixel_sha256(np.asfortranarray(grey)) == pixel_sha256(grey)


def test_another_format_moves_the_files_digest_alone():
    labels = np.zeros((2, 3), np.uint8)
    pairs = []
    for options in ({"format": "PNG"}, {"format": "BMP"}):
        row = {"name": "a", "image": stored(PIXELS, **options), "annotation": stored(labels, format="PNG")}
        pairs.append(pair_digests(row, read_image(row["image"], "a"), labels))
    first, second = pairs
    assert first.image != second.image
    assert first._replace(image="") == second._replace(image="")
    assert first.image == hashlib.sha256(stored(PIXELS, format="PNG")["bytes"]).hexdigest()
