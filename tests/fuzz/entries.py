"""What is fuzzed: for each kind of input, how a mutated one is made and which code reads it.

An entry takes an empty folder and a random generator, writes one input there, and returns what an error must name
(one of several, where it is a list) and a function that reads it. That function may return, when all is well, or raise
UserError; it asserts that what it has read is sound. `@entry(COUNT)` says how many inputs of the kind the ordinary
tests try; slow tests try more of each, in proportion. To add a kind, write such a function here.
"""

import contextlib
import io
import json
import zipfile

import datasets
import numpy as np
import torch
import yaml
from PIL import Image

from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.check_data import check
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.reading import read_image, read_labels
from hub_unets.training.data.sources import load_frames, load_source
from hub_unets.training.errors import UserError, about_input
from hub_unets.training.settings.arguments import parse
from tests.fuzz.mutations import mutate_folder, mutated_bytes, mutated_text, mutated_value, pick

ENTRIES = {}
SIZE = 16, 12  # width, height


def entry(count):
    """Registers a function as the entry of its name, of which the ordinary tests try `count` inputs."""

    def register(function):
        ENTRIES[function.__name__] = count, function
        return function

    return register


def _encoded(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def _pictures():
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    cases = [("PNG", rgb.convert(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    cases += [(suffix, rgb) for suffix in ("JPEG", "WEBP", "BMP", "PPM", "TGA", "JPEG2000")]
    cases += [(suffix, rgb.convert("P")) for suffix in ("GIF", "BMP", "TIFF")]
    encoded = [_encoded(image, suffix) for suffix, image in cases]
    encoded += [_encoded(rgb, "TIFF", compression="jpeg"), _encoded(rgb.convert("F"), "TIFF")]
    return [*encoded, *[_encoded(rgb, suffix, exif=exif) for suffix in ("JPEG", "PNG", "WEBP")]]


def _masks():
    values = np.zeros(SIZE[::-1], np.uint8)
    values[3:9, 4:12] = 1
    ones, whites = Image.fromarray(values), Image.fromarray(values * 255)
    palette = ones.copy()
    palette.putpalette([0, 0, 0, 255, 255, 255])
    cases = [("PNG", ones), ("PNG", whites), ("PNG", palette), ("GIF", palette), ("BMP", palette), ("JPEG", whites)]
    cases += [("TIFF", whites.convert(mode)) for mode in ("1", "L", "F", "I", "RGB")]
    cases += [("PNG", whites.convert(mode)) for mode in ("1", "LA", "RGBA", "RGB")]
    return [_encoded(image, suffix) for suffix, image in cases]


PICTURES, MASKS = _pictures(), _masks()
PNG, WHITE = PICTURES[4], MASKS[1]


@entry(80)
def images(folder, rng):
    path = folder / "frame.png"
    path.write_bytes(mutated_bytes(rng, pick(rng, PICTURES)))

    def read():
        image = read_image({"bytes": None, "path": str(path)}, "frame")
        assert image.mode == "RGB" and min(image.size) > 0

    return path.name, read


@entry(80)
def masks(folder, rng):
    path, num_labels = folder / "frame.png", int(rng.integers(2, 4))
    path.write_bytes(mutated_bytes(rng, pick(rng, MASKS)))

    def read():
        labels = read_labels({"bytes": None, "path": str(path)}, "frame", num_labels)
        assert labels.dtype == np.uint8 and set(np.unique(labels)) <= {*range(num_labels), 255}

    return path.name, read


def _write_pairs(folder, parts=("",), count=3):
    for number, part in enumerate(parts):
        for kind, content in ("images", PNG), ("masks", WHITE):
            (folder / part / kind).mkdir(parents=True)
            for index in range(count):
                noise = bytes([number, index]) if kind == "images" else b""
                (folder / part / kind / f"{part}{index}.png").write_bytes(content + noise)


def _read_source(data):
    """Loads, splits and checks a source as `--check_data` does; every bad pair is named."""
    source = load_source(str(data))
    rows, partition = make_partition(source, "all")
    report = check(rows, partition)
    for pair in report["bad"]:
        assert pair["name"] in pair["reason"]
    assert report["pairs"] == sum(map(len, source.values()))


@entry(40)
def folders(folder, rng):
    data = folder / "set"
    _write_pairs(data, pick(rng, [("",), ("train", "test"), ("train", "val", "odd")]))
    mutate_folder(rng, data)
    return "set", lambda: _read_source(data)


@entry(20)
def frames(folder, rng):
    data = folder / "set"
    _write_pairs(data)
    mutate_folder(rng, data)
    return "set", lambda: load_frames(str(data))


@entry(40)
def zips(folder, rng):
    data = folder / "set"
    _write_pairs(data, pick(rng, [("",), ("train", "test")]))
    path = folder / "set.zip"
    method = pick(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    odd = pick(rng, [None, "a" * 300, "images", "a\\b", "x/", "\ud7ff", "con:", "images/0.png/b", "./images/0.png"])
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(data.rglob("*.png")):
            archive.write(file, file.relative_to(data))
        if odd:
            archive.writestr(odd, b"x")
    if not odd or rng.random() < 0.5:
        path.write_bytes(mutated_bytes(rng, path.read_bytes(), most=2))
    return "set", lambda: _read_source(path)


COCO = {
    "images": [{"id": n, "file_name": f"images/{n}.png", "width": SIZE[0], "height": SIZE[1]} for n in range(3)],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 8, 2, 8]], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": {"size": [12, 16], "counts": [6, 6, 180]}},
        {"id": 3, "image_id": 2, "category_id": 0, "segmentation": {"size": [12, 16], "counts": "66d5"}},
    ],
    "categories": [{"id": 1, "name": "polyp", "supercategory": ""}, {"id": 0, "name": "background"}],
}


@entry(80)
def coco(folder, rng):
    (folder / "images").mkdir()
    for number in range(3):
        (folder / f"images/{number}.png").write_bytes(PNG + bytes([number]))
    path = folder / "set.json"
    if rng.random() < 0.3:
        path.write_bytes(mutated_text(rng, json.dumps(COCO)))
    else:
        path.write_text(json.dumps(mutated_value(rng, COCO)))
    return "set.json", lambda: _read_source(path)


ROWS = [{"file_name": f"images/{n}.png", "mask_file_name": f"masks/{n}.png", "age": n} for n in range(3)]


@entry(12)
def metadata(folder, rng):
    data = folder / "set"
    _write_pairs(data)
    if rng.random() < 0.5:
        name, text = "metadata.jsonl", "\n".join(json.dumps(row) for row in mutated_rows(rng))
    else:
        lines = [",".join(ROWS[0])] + [",".join(str(value) for value in row.values()) for row in mutated_rows(rng)]
        name, text = "metadata.csv", "\n".join(lines)
    (data / name).write_bytes(mutated_text(rng, text) if rng.random() < 0.6 else text.encode(errors="replace"))
    return "set", lambda: _read_source(data)


def mutated_rows(rng):
    """ROWS, mutated; values that are no longer dictionaries are left out."""
    rows = mutated_value(rng, ROWS)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


@entry(16)
def tables(folder, rng):
    path = folder / "set.parquet"
    values = [{"bytes": PNG + bytes([number]), "path": f"{number}.png"} for number in range(3)]
    columns = {"name": ["a", "b", "c"], "image": values, "mask": [{"bytes": WHITE, "path": "m.png"}] * 3}
    if rng.random() < 0.5:
        with contextlib.suppress(Exception):  # what pyarrow refuses to write
            changed = mutated_value(rng, columns)
            datasets.Dataset.from_dict(changed).to_parquet(path)
    if not path.exists():
        datasets.Dataset.from_dict(columns).to_parquet(path)
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    return ["set.parquet", "0.png", "1.png", "2.png"], lambda: _read_source(path)


RECIPE = {
    "variant": "unet",
    "data": "phantoms?count=20&size=64&seed=0",
    "image_size": 64,
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
    "augmentation": [{"HorizontalFlip": {"p": 0.5}}],
    "model": {"base_channels": 4, "depth": 2, "decoder_channels": None},
    "loss": {"bce": 1.0, "dice": 1.0},
    "seed": 1,
}
BOMB = "\n".join(["a0: &a0 x", *[f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]])
YAML = [
    BOMB,
    "a: " + "[" * 3000 + "]" * 3000,
    "seed: " + "9" * 6000,
    "seed: 2001-99-99",
    "? [1, 2]\n: 3",
    "seed: !!python/object/apply:os.getcwd []",
    "model: {depth: 1000000}",
    "model: {depth: 40, base_channels: 1}",
    "model: {base_channels: 1000000000}",
    "model: {decoder_channels: [100000, 1000000, 1000000, 1000000]}",
    "image_size: 1000000000",
    "a: &a {b: *a}",
]


@entry(60)
def recipes(folder, rng):
    path = folder / "mine.yaml"
    if rng.random() < 0.3:
        path.write_text(pick(rng, YAML))
    elif rng.random() < 0.3:
        path.write_bytes(mutated_text(rng, yaml.safe_dump(RECIPE)))
    else:
        path.write_text(yaml.safe_dump(mutated_value(rng, RECIPE)), encoding="utf-8", errors="replace")

    def read():
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                arguments, model, _, _ = parse([str(path)])
        except SystemExit as stopped:  # argparse's own way to refuse: it names the field
            assert stopped.code == 2
            raise UserError(path.name) from stopped
        Augmentation(yaml.safe_load(arguments.augmentation) or [], arguments.seed)
        config_class, model_class = find_variant(arguments.variant)
        with about_input(), torch.device("meta"):
            model_class(config_class(**model))

    return [path.name, *RECIPE, *RECIPE["model"]], read
