"""What all sources give: rows of name, image and annotation, which stay encoded, and the names of their parts."""

import re
from collections.abc import Iterable

import datasets

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "val", "valid", "dev"), "validation"
)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}

ENCODED = datasets.Image(decode=False)
FEATURES = datasets.Features(name=datasets.Value("string"), image=ENCODED, annotation=ENCODED)


def has_stems(names: Iterable[str]) -> bool:
    """False where the source gave no file names, so that every name is a made-up row-000000."""
    return not all(re.fullmatch(r"row-\d{6}", name) for name in names)


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """The first `limit` names and how many more there are, for an error or a report."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
