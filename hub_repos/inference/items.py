"""What is predicted: an image with its name, wherever it comes from."""

from collections.abc import Callable
from typing import NamedTuple


class Place(NamedTuple):
    """Where a frame is: its video's name, and its number among the frames that are taken of it."""

    video: str
    position: int


class Item(NamedTuple):
    """An image to predict: its name, its file for messages, a stamp that changes with the file, and a reader.

    `read` gives the encoded file, {"bytes", "path"}, and raises UserError if it is damaged. A frame has a `place`.
    """

    name: str
    file: str
    stamp: str
    read: Callable[[], dict]
    place: Place | None = None
