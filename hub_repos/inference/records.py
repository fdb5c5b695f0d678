"""The records of a folder of predictions, read one at a time: an hour of video has 90 000 of them."""

import json
from pathlib import Path
from typing import NamedTuple

WORK = ".work"


class Entry(NamedTuple):
    """Where a record is, and what tells whether and in which order it is listed."""

    order: tuple[str, int]
    name: str
    stamp: str
    written: float
    uncertainty: float
    file: Path
    offset: int


class Records:
    """The newest record of each image, sorted by name and a video's in time; only their places are in memory.

    Args:
        folder: of predictions.
        stamps: {name: stamp} of the images and videos that are listed; None lists all.
    """

    def __init__(self, folder, stamps=None):
        newest = {}
        for file in (Path(folder) / WORK).glob("records-*.jsonl"):
            for entry in _entries(file, stamps):
                if entry.name not in newest or entry.written > newest[entry.name].written:
                    newest[entry.name] = entry
        self.entries = sorted(newest.values())

    def __len__(self):
        return len(self.entries)

    def __iter__(self):
        files = {}
        try:
            for entry in self.entries:
                if entry.file not in files:
                    files[entry.file] = entry.file.open("rb")
                files[entry.file].seek(entry.offset)
                yield json.loads(files[entry.file].readline())
        finally:
            for file in files.values():
                file.close()

    def uncertain_first(self):
        """Sort them by falling uncertainty."""
        self.entries.sort(key=lambda entry: -entry.uncertainty)


def _entries(path, stamps):
    """An Entry for each record of a file whose last line may be half written."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            record = json.loads(line) if line.endswith(b"\n") else None
            if record:
                of = record.get("video", record["name"])
                if stamps is None or stamps.get(of) == record["stamp"]:
                    order = of, record.get("position", 0)
                    rest = record["name"], record["stamp"], record["written"], record["uncertainty"]
                    yield Entry(order, *rest, path, offset)
            offset += len(line)
