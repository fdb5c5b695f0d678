"""Which video sequence each image is from: a table beside the folder of images, where there is one."""

import csv
import os
from pathlib import Path

from hub_unets.training.data.files import first_few
from hub_unets.training.errors import UserError

TABLE = "sequences.csv"  # columns name (the image's stem) and sequence


def sequences_of(names, paths):
    """The sequence of each image by its name; empty where no table lies beside the images' folder.

    Args:
        names: of the rows.
        paths: of their stored images; None or empty without one.

    Raises:
        UserError: a table without these columns, or one that lacks an image.
    """
    folders = {os.path.dirname(path) for path in paths if path}  # noqa: PTH120 - ten times as fast
    sequences = {}
    for path in sorted({Path(folder).parent / TABLE for folder in folders}):
        if path.is_file():
            sequences |= _read(path)
    missing = [name for name in names if name not in sequences]
    if sequences and missing:
        raise UserError(
            f"{TABLE} names no sequence of {len(missing)} images: {first_few(missing)}: add them, or take the table "
            "away, and neighbouring frames may come to different parts"
        )
    return {name: sequences[name] for name in names} if sequences else {}


def _read(path):
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"name", "sequence"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path} needs the columns name and sequence, got {reader.fieldnames}")
        return {row["name"]: row["sequence"] for row in reader}
