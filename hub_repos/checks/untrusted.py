"""Reading untrusted files: plain files only, text in UTF-8, JSON without tricks."""

import json
import math
import os
import stat

from hub_unets.training.errors import UserError

MAX_BYTES = 64 * 2**20  # of any file but the weights
MAX_DEPTH = 32  # of lists and objects in JSON; ours have 7
NOT_WAITING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_file(path):
    """A plain file, opened for its bytes.

    Raises:
        UserError: it is missing, a link, a folder or a device.
    """
    try:
        if stat.S_ISLNK(path.lstat().st_mode):
            raise UserError(f"{path.name} is a symbolic link: a repository holds plain files only")
        file = os.fdopen(os.open(path, os.O_RDONLY | NOT_WAITING), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.name} is missing") from None
    except OSError as error:
        raise UserError(f"{path.name} can't be read ({error.strerror}): a repository holds plain files only") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path.name} is a folder or a device: a repository holds plain files only")
    return file


def read_bytes(path):
    """The content of a plain file of at most MAX_BYTES."""
    with open_file(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path.name} is larger than {MAX_BYTES} bytes")
    return content


def read_text(path):
    """The content of a plain file as UTF-8 text."""
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not text: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise UserError(f"{path.name} is not text: it holds a zero byte")
    return text


def read_json(path):
    """The object in a JSON file, as a dictionary."""
    value = parse_json(read_text(path), path.name)
    if not isinstance(value, dict):
        raise UserError(f"{path.name} must map names to values, got {str(value)[:60]}")
    return value


def parse_json(text, name):
    """JSON as the standard has it: no repeated key, no NaN, no number beyond 64 bits, no endless nesting."""

    def unique(pairs):
        values = {}
        for key, value in pairs:
            if key in values:
                raise UserError(f"the key {key[:80]!r} is repeated")
            values[key] = value
        return values

    def finite(number):
        if not math.isfinite(float(number)):
            raise UserError(f"{number[:80]} is no number")
        return float(number)

    def whole(number):
        if len(number) > 20 or not -(2**63) <= int(number) < 2**63:
            raise UserError(f"{number[:80]} is beyond 64 bits")
        return int(number)

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_int=whole, parse_constant=finite)
        _check_values(value)
    except RecursionError:
        raise UserError(f"{name} is not JSON: it is nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}") from None
    return value


def _check_values(value, depth=0):
    """Raise UserError for endless nesting, and for halves of characters, which no file can hold."""
    if depth > MAX_DEPTH:
        raise UserError(f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, str) and not value.isascii():
        value.encode("utf-8")
    for key in value if isinstance(value, dict) else ():
        _check_values(key, depth)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_values(item, depth + 1)
