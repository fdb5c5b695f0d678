"""Small sources of every kind, written for the tests."""

import os
import zipfile
from pathlib import Path

import datasets
import pytest
from PIL import Image


def real_set() -> Path:
    """Kvasir-SEG's folder, or the test is skipped."""
    default = Path(__file__).parents[4] / "shared" / "kvasir-seg"
    folder = Path(os.environ.get("KVASIR_SEG", default))
    if not (folder / "images").is_dir():
        pytest.skip(f"{folder} not found; set KVASIR_SEG")
    return folder


def write_image(path, colour=90, size=(32, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if mode == "L" else (colour, 40, 40)).save(path)


def write_pairs(folder, stems=("a", "b", "c"), images="images", masks="masks"):
    for number, stem in enumerate(stems):
        write_image(folder / images / f"{stem}.jpg", 10 * number)
        write_image(folder / masks / f"{stem}.png", 255, mode="L")
    return folder


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return str(path)


def encoded(column="image", count=3, path="{}.jpg"):
    image = Image.new("RGB", (32, 24))
    return {column: [{"bytes": image.tobytes(), "path": path.format(f"frame{i}")} for i in range(count)]}


def table(columns: dict, images=("image", "annotation")) -> datasets.Dataset:
    rows = datasets.Dataset.from_dict(columns)
    for column in images:
        rows = rows.cast_column(column, datasets.Image())
    return rows


def assert_rows(rows, names):
    assert rows.column_names == ["name", "image", "annotation"]
    assert rows.features["image"] == rows.features["annotation"] == datasets.Image(decode=False)
    assert list(rows["name"]) == names
