"""One annotation of a COCO file as pixels: polygons, compressed and uncompressed run lengths.

Memory and time grow with the image and the file, never with a number that the file holds.
"""

import math

import numpy as np

from hub_unets.training.errors import UserError

LONGEST_OUTLINE = 2_000_000  # pixels: the rasteriser keeps some hundred bytes of each


def mask_api():
    """pycocotools.mask. Raises UserError, naming the extra, where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError("COCO files need pycocotools: pip install 'hub-unets[coco]'") from error
    return mask


def annotation_pixels(source: str, segmentation: object, height: int, width: int) -> np.ndarray:
    """What a `segmentation` marks, bool H x W.

    It is a list of polygons, each as x, y, x, y, ... or as pairs, a single polygon of either kind, or run lengths.
    Raises UserError, which begins with `source` and says the value, for anything else.
    """
    if not isinstance(segmentation, list | dict) or not segmentation:
        raise UserError(f"{source} has no segmentation, a box is no mask: annotate with polygons or a brush")
    api, pixels = mask_api(), np.zeros((height, width), bool)
    pieces = _pieces(segmentation)
    if polygons := [_polygon(source, piece, height, width) for piece in pieces if not isinstance(piece, dict)]:
        _require_short(source, polygons)
        pixels |= api.decode(api.merge(api.frPyObjects(polygons, height, width))).astype(bool)
    for piece in (piece for piece in pieces if isinstance(piece, dict)):
        runs = _run_lengths(source, piece, height, width)
        pixels |= api.decode(api.frPyObjects({"size": [height, width], "counts": runs}, height, width)).astype(bool)
    return pixels


def whole_number(value: object) -> int | None:
    """An integer that may be written as 80, 80.0 or "80"; None for anything else."""
    try:
        number = float(value)
        return int(number) if number.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None


def _pieces(segmentation: list | dict) -> list:
    """Its polygons, and its run lengths."""
    if isinstance(segmentation, dict):
        return [segmentation]
    if not isinstance(segmentation[0], list | dict):
        return [segmentation]  # one polygon, x, y, x, y, ...
    pairs = all(isinstance(item, list) and len(item) == 2 and not isinstance(item[0], list) for item in segmentation)
    return [segmentation] if pairs and len(segmentation) >= 3 else segmentation


def _polygon(source: str, piece: object, height: int, width: int) -> list[float]:
    """x, y, x, y, ... of a polygon, at most an image's side outside of it."""
    values = piece if isinstance(piece, list) else [piece]
    if values and all(isinstance(point, list) and len(point) == 2 for point in values):
        values = [number for pair in values for number in pair]
    numbers = [_coordinate(source, value) for value in values]
    if len(numbers) < 6 or len(numbers) % 2:
        raise UserError(f"{source} has a polygon of fewer than three points, or of half a point: mend or remove it")
    for index, number in enumerate(numbers):
        side = height if index % 2 else width
        if not -side <= number <= 2 * side:
            raise UserError(
                f"{source} has the coordinate {values[index]!r}, far outside its image of {width} x {height} pixels: "
                "mend or remove it, or export it for this image"
            )
    return numbers


def _coordinate(source: str, value: object) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        text = "null" if value is None else repr(value)[:60]
        raise UserError(f"{source} has the coordinate {text}, which is no number: mend or remove it")
    return number


def _require_short(source: str, polygons: list[list[float]]) -> None:
    length = 0
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2))
        length += np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length > LONGEST_OUTLINE:
        raise UserError(
            f"{source} has an outline of {length:,.0f} pixels, the limit is {LONGEST_OUTLINE:,}: simplify or remove it"
        )


def _run_lengths(source: str, piece: dict, height: int, width: int) -> list[int]:
    """The numbers of pixels outside, inside, outside, ..., which cover the image."""
    counts, size = piece.get("counts"), piece.get("size")
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    runs = [whole_number(run) for run in runs] if isinstance(runs, list) else []
    is_valid = None not in runs and min(runs, default=-1) >= 0
    sides = [whole_number(side) for side in size] if isinstance(size, list) else size
    if not is_valid or sides != [height, width] or sum(runs) != height * width:
        coverage = f"{sum(runs)} pixels" if is_valid or not runs else "what are no numbers from 0"
        raise UserError(
            f"{source} has run lengths of {coverage} and size {str(size)[:60]}, its image is of size "
            f"[{height}, {width}]: export it again"
        )
    return runs


def _uncompressed(text: str) -> list[int | None]:
    """Compressed counts as numbers: digits of 5 bits and a sign, from the third on the change since the last but one.

    pycocotools accepts a text that is cut off and leaves the rest of the mask undefined. A text that is cut off, or
    holds a number of more than 60 bits, gives [None].
    """
    runs, value, shift = [], 0, 0
    for digit in (ord(letter) - 48 for letter in text):
        if not 0 <= digit < 64 or shift > 60:
            return [None]
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        value -= (digit & 16) << (shift - 4)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return [None] if shift else runs
