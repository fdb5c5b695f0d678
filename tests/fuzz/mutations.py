"""Seeded mutations of whatever a stranger may send: bytes, text, JSON and YAML values, folders of files.

Each takes a `numpy.random.Generator` and returns the mutated input.
"""

import copy
import json
import math
import os
from pathlib import Path

NUMBERS = [0, -1, 1, 2, 255, 256, 1e7, -1e7, 2**31, 2**63, 10**12, 10**400, 0.5, 1e-300, 1e308, math.nan, math.inf]
TEXTS = ["", " ", "x", "1", "1e3", "nan", "null", "a\0b", "\ud800", "é" * 300, "../..", "/", "C:\\a.png", "%", "-"]
VALUES = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [None], [1, 2], {"a": {}}, [[[[[[[[1]]]]]]]]]
RUNS = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\n", b"{", b"\xef\xbb\xbf", b"'", b","]


def pick(rng, values):
    """A random value of a list."""
    return values[int(rng.integers(len(values)))]


def mutated_bytes(rng, content, most=3):
    """The content with one to `most` changes: bits, runs, pieces cut out, doubled or put elsewhere, a cut end."""
    content = bytearray(content)
    for _ in range(int(rng.integers(1, most + 1))):
        start = int(rng.integers(len(content) + 1))
        end = min(len(content), start + int(rng.integers(1, 40)))
        kind = int(rng.integers(7))
        if kind == 0:
            content[start : start + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            run = pick(rng, RUNS)
            content[start : start + len(run)] = run
        elif kind == 2:
            del content[start:end]
        elif kind == 3:
            content[end:end] = content[start:end] * int(rng.integers(1, 4))
        elif kind == 4:
            content[start:end] = rng.bytes(end - start)
        elif kind == 5:
            del content[start:]
        elif end > start:
            content[start] ^= 1 << int(rng.integers(8))
    return bytes(content)


def mutated_text(rng, text):
    """The text in UTF-8 with bytes changed, or in another encoding."""
    if rng.random() < 0.1:
        return text.encode(pick(rng, ["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp037"]), errors="replace")
    return mutated_bytes(rng, text.encode(errors="replace"))


def mutated_value(rng, value, values=VALUES, most=2):
    """A JSON or YAML value with one to `most` of its parts replaced, removed, doubled, renamed or wrapped."""
    root = [copy.deepcopy(value)]
    for _ in range(int(rng.integers(1, most + 1))):
        holder, key = pick(rng, _places(root))
        kind = int(rng.integers(8))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 1:
            holder[pick(rng, TEXTS)] = holder.pop(key)
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3:
            holder[key] = json.dumps(holder[key], default=str)
        else:
            holder[key] = copy.deepcopy(pick(rng, values))
        root = root or [None]
    return root[0]


def _places(holder):
    """Every (container, key) below a container."""
    places = []
    for key, value in list(enumerate(holder) if isinstance(holder, list) else holder.items()):
        places.append((holder, key))
        if isinstance(value, (list, dict)):
            places += _places(value)
    return places


def mutate_folder(rng, folder, most=3):
    """Changes one to `most` things of the files below a folder, in place."""
    for _ in range(int(rng.integers(1, most + 1))):
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        if not files:
            return
        file = pick(rng, files)
        kind = int(rng.integers(9))
        name = pick(rng, ["b" * 250, "a\nb", "ä", "a.b.c", "%s", ".h", "con", " ", "a'\"b"])
        sibling = file.with_name(name + file.suffix)
        if kind == 0:
            file.unlink()
        elif kind == 1:
            file.write_bytes(mutated_bytes(rng, file.read_bytes()))
        elif kind == 2 and not sibling.exists():
            file.rename(sibling)
        elif kind == 3 and not sibling.exists():
            os.mkfifo(sibling)
        elif kind == 4 and not sibling.exists():
            sibling.mkdir()
        elif kind == 5 and not sibling.exists():
            sibling.symlink_to(pick(rng, [folder, sibling, "/dev/zero", "nowhere"]))
        elif kind == 6:
            file.rename(file.with_suffix(pick(rng, ["", ".heic", ".JPG", ".txt", ".tiff", ".ppm"])))
        elif kind == 7:
            invalid_name = os.fsencode(file.parent) + b"/\xff\xfe" + os.fsencode(file.suffix)
            Path(os.fsdecode(invalid_name)).write_bytes(file.read_bytes())
        else:
            file.write_bytes(pick(rng, files).read_bytes())
