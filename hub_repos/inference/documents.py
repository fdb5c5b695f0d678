"""Tables and COCO instances of a folder of predictions, written as its records are read."""

import csv
import json
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hub_unets.hub_repos.inference.records import WORK, Records
from hub_unets.hub_repos.inference.tracks import number_tracks

IMAGE_COLUMNS = "image", "width", "height", "polyps", "area_percent", "uncertainty"
POLYP_COLUMNS = "image", "polyp", "label", "area_pixels", "area_percent", "x", "y", "width", "height", "score", "track"


class Listed(NamedTuple):
    """How many images and polyps the documents list."""

    images: int
    polyps: int


def write_documents(folder, id2label, failures, uncertain_first=False, stamps=None, left_out=()):
    """Write annotations.json, files.txt, images.csv, polyps.csv, failed.csv, left_out.csv; returns what is Listed.

    Args:
        folder: the output folder.
        id2label: the model's labels.
        failures: pairs of file and reason; without any there is no failed.csv.
        uncertain_first: list the images by falling uncertainty, not by name.
        stamps: {name: stamp} of the images and videos that the inputs hold now; other records are not listed. None
            lists all.
        left_out: files of the inputs that are not predicted; without any there is no left_out.csv.
    """
    folder, records = Path(folder), Records(folder, stamps)
    ids = {record["name"]: _ids(record) for record in number_tracks(records) if "video" in record and record["polyps"]}
    if uncertain_first:
        records.uncertain_first()
    _write_coco(folder / "annotations.json", records, ids, id2label)
    with _whole(folder / "files.txt") as file:
        file.writelines(f"{_file(folder, record['image'])}\n" for record in records)
    _write_table(folder / "images.csv", IMAGE_COLUMNS, map(_image_row, records))
    polyps = (_polyp_row(*polyp, id2label) for record in records for polyp in _numbered(_with_ids(record, ids)))
    _write_table(folder / "polyps.csv", POLYP_COLUMNS, polyps)
    _write_list(folder / "failed.csv", ("file", "reason"), failures)
    _write_list(folder / "left_out.csv", ("file",), [(file,) for file in left_out])
    return Listed(len(records), sum(len(record["polyps"]) for record in records))


def _file(folder, location):
    """The path of an image, which is itself, or was kept in the folder."""
    url = location.get("coco_url")
    return (folder / location["file_name"]).absolute() if url is None else url2pathname(urlsplit(url).path)


def _ids(record):
    return [polyp["track_id"] for polyp in record["polyps"]]


def _with_ids(record, ids):
    for polyp, track_id in zip(record["polyps"], ids.get(record["name"], ()), strict=False):
        polyp["track_id"] = track_id
    return record


def _write_coco(path, records, ids, id2label):
    """COCO instances; ids count from 1, and a category's id is its label."""
    categories = [{"id": label, "name": id2label[label]} for label in sorted(id2label) if label > 0]
    images = ({"id": number, **record["image"]} for number, record in enumerate(records, start=1))
    polyps = (
        {"image_id": number, **polyp}
        for number, record in enumerate(records, start=1)
        for polyp in _with_ids(record, ids)["polyps"]
    )
    annotations = ({"id": number, **polyp} for number, polyp in enumerate(polyps, start=1))
    with _whole(path) as file:
        for start, items in (('{"images": [', images), ('], "annotations": [', annotations)):
            file.write(start)
            for number, item in enumerate(items):
                file.write((", " if number else "") + json.dumps(item))
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _image_row(record):
    width, height = record["image"]["width"], record["image"]["height"]
    percent = round(100 * record["area"] / (width * height), 4)
    return record["name"], width, height, len(record["polyps"]), percent, record["uncertainty"]


def _numbered(record):
    return [(record, number, polyp) for number, polyp in enumerate(record["polyps"], start=1)]


def _polyp_row(record, number, polyp, id2label):
    percent = round(100 * polyp["area"] / (record["image"]["width"] * record["image"]["height"]), 4)
    box = [int(value) for value in polyp["bbox"]]
    area_and_box = polyp["area"], percent, *box
    return record["name"], number, id2label[polyp["category_id"]], *area_and_box, polyp["score"], polyp.get("track_id")


def _write_list(path, columns, rows):
    """Write a table, or remove it if there are no rows."""
    path.unlink(missing_ok=True)
    if rows:
        _write_table(path, columns, rows)


def _write_table(path, columns, rows):
    with _whole(path) as file:
        csv.writer(file).writerow(columns)
        csv.writer(file).writerows(rows)


@contextmanager
def _whole(path):
    """A text file that is moved into place when it is written."""
    partial = path.parent / WORK / path.name
    with partial.open("w", encoding="utf-8", newline="") as file:
        yield file
    partial.replace(path)
