"""Reading files that nobody vouches for: plain files only, JSON without tricks, safetensors without its loader."""

import json
import math
import stat

from hub_unets.training.errors import UserError

MAX_BYTES = 64 * 2**20  # of any file but the weights
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F64", "I64"), 8),
}


def open_file(path):
    """A plain file, opened for its bytes.

    Raises:
        UserError: it is missing, a link, a folder or a device.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing") from None
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "a folder or a device"
        raise UserError(f"{path.name} is {kind}: a repository holds plain files only")
    return path.open("rb")


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
        raise UserError(f"{path.name} is not text: {error}") from None
    if "\0" in text:
        raise UserError(f"{path.name} is not text: it holds a zero byte")
    return text


def read_json(path):
    """The value in a JSON file."""
    return parse_json(read_text(path), path.name)


def parse_json(text, name):
    """JSON as the standard has it: no repeated key, no NaN, no number beyond a float."""

    def unique(pairs):
        found = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"the key {key!r} is repeated")
            found[key] = value
        return found

    def finite(number):
        if not math.isfinite(float(number)):
            raise UserError(f"{number} is no number")
        return float(number)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from None


def read_tensors(path):
    """The tensors of a safetensors file, {name: (dtype, shape)}, from its header alone.

    The file is 8 bytes with the header's length, a header of JSON, and the tensors' bytes without gap or overlap.

    Raises:
        UserError: it is not just that.
    """
    with open_file(path) as file:
        size = path.lstat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise UserError(f"{path.name}: a header of {length} bytes does not fit a file of {size} bytes")
        text = file.read(length)
    try:
        header = parse_json(text.decode("utf-8"), f"{path.name}: the header")
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: the header is not JSON: it is not text") from None
    if not isinstance(header, dict):
        raise UserError(f"{path.name}: the header is no JSON object")
    if header.pop("__metadata__", {}) != {"format": "pt"}:
        raise UserError(f'{path.name}: the header\'s metadata is not {{"format": "pt"}}')
    spans = sorted((*_span(name, entry, size - 8 - length), name) for name, entry in header.items())
    _refuse_gaps(spans, size - 8 - length)
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def _span(name, entry, available):
    """Where a tensor begins and ends."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"tensor {name!r} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise UserError(f"tensor {name!r} has an unknown dtype {dtype!r}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or any(type(number) is not int or number < 0 for number in numbers):
            raise UserError(f"tensor {name!r}: {what} must be whole numbers from 0, got {numbers!r}")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
        raise UserError(f"tensor {name!r}: data_offsets {offsets} are out of range, there are {available} bytes")
    if math.prod(shape) * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise UserError(f"tensor {name!r}: {dtype} of shape {shape} does not take {offsets[1] - offsets[0]} bytes")
    return offsets


def _refuse_gaps(spans, available):
    position = 0
    for begin, end, name in spans:
        if begin != position:
            kind = "overlaps the one before" if begin < position else "leaves a gap before it"
            raise UserError(f"tensor {name!r} {kind}: it begins at byte {begin}, not {position}")
        position = end
    if position != available:
        raise UserError(f"{available - position} trailing bytes follow the last tensor")
