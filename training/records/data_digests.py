"""data_digests.csv: what the scored images and masks were, file by file and pixel by pixel."""

import csv
import hashlib
import re
from pathlib import Path

from hub_unets.training.data.digests import PairDigests
from hub_unets.training.errors import UserError

DATA_DIGESTS = "data_digests.csv"
COLUMNS = ("name", "part", *(f"{field}_sha256" for field in PairDigests._fields))
SHA256 = re.compile(r"[0-9a-f]{64}")


def write_data_digests(folder, scores):
    """Write a row for each scored image; `scores` are {part: Scores}."""
    with (Path(folder) / DATA_DIGESTS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for part, scored in scores.items():
            for name, digests in zip(scored.names, scored.digests, strict=True):
                writer.writerow([name, part, *digests])


def read_data_digests(path):
    """{part: {name: PairDigests}} of a data_digests.csv.

    Raises:
        UserError: it is not what `write_data_digests` writes; names the line.
    """
    path, parts = Path(path), {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, strict=True)
        try:
            for number, row in enumerate(rows, start=1):
                _add_row(parts, row, number)
        except (csv.Error, ValueError) as error:
            raise UserError(f"{path.name}, line {rows.line_num}: {str(error)[:200]}") from error
    return parts


def _add_row(parts, row, number):
    if number == 1:
        if tuple(row) != COLUMNS:
            raise ValueError(f"the columns must be {', '.join(COLUMNS)}")
        return
    if len(row) != len(COLUMNS) or not all(map(SHA256.fullmatch, row[2:])):
        raise ValueError("a row holds a name, a part and four sha256 in hex")
    name, part, *digests = row
    if name in parts.setdefault(part, {}):
        raise ValueError(f"{name[:80]} is in two rows")
    parts[part][name] = PairDigests(*digests)


def digest_of_all(pairs, fields):
    """One sha256, in hex, of many: of the sorted lines of a name and its digests, tabs between.

    Args:
        pairs: {name: PairDigests}.
        fields: which of their fields.
    """
    rows = [[name, *(getattr(pair, field) for field in fields)] for name, pair in pairs.items()]
    lines = sorted("\t".join(row) + "\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
