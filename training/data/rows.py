"""What all sources share: columns of a row, names of parts."""

import re
from collections.abc import Iterable, Iterator

import datasets
import pyarrow.compute

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "val", "valid", "dev"), "validation"
)

ENCODED = datasets.Image(decode=False)
FEATURES = datasets.Features(name=datasets.Value("string"), image=ENCODED, annotation=ENCODED)


def stored_files(rows: datasets.Dataset, column: str) -> Iterator[dict]:
    """The files {"bytes", "path"} of a column, in order: a few rows at a time are much faster than each alone."""
    for batch in rows.select_columns(column).with_format("arrow").iter(32):
        yield from batch[column].to_pylist()


def stored_paths(rows: datasets.Dataset, column: str) -> Iterator[str | None]:
    """The paths of these files; None where the table holds the file itself."""
    for batch in rows.select_columns(column).with_format("arrow").iter(4096):
        yield from pyarrow.compute.struct_field(batch[column], "path").to_pylist()


def has_stems(names: Iterable[str]) -> bool:
    """False where the source gave no file names, so that every name is a made-up row-000000."""
    return not all(re.fullmatch(r"row-\d{6}", name) for name in names)
