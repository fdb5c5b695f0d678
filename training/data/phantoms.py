"""Seeded phantom colonoscopy frames with polyp masks: data that needs no network, and that no colour threshold solves.

A lesion differs from the mucosa by its closed outline, its dome shading and its pit pattern; its brightness and hue
overlap with those of folds, flat patches and the lumen. Lengths are relative to the frame, whatever its size.
"""

import math
import string

import cv2
import datasets
import numpy as np

from hub_unets.training.errors import UserError

PARTS = ("train", "validation", "test")
MUCOSA = np.float32(
    [[0.82, 0.35, 0.29], [0.82, 0.35, 0.16], [0.76, 0.22, 0.17], [0.86, 0.47, 0.39]]
)  # pink orange red pale
TINTS = np.float32([[0.02, 0.10, 0.06], [0.0, 0.03, -0.12]])  # log colour steps: redness, yellowness
ALPHABET = np.array(list(string.ascii_uppercase + string.digits * 3 + ":/"))


def phantom(seed: int, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draws frame `index` of `seed`: RGB uint8 H x W x 3 and mask uint8 H x W in {0, 255} with one to three lesions.

    H is 0.9 to 1.1 of `size` and W is 1 to 1.35 of H, in pixels. The same arguments give the same pixels. Raises
    UserError when size is below 64.
    """
    _require("size", size, 64)
    rng = np.random.default_rng([seed, index])
    height = round(size * rng.uniform(0.9, 1.1))
    shape = height, round(height * rng.uniform(1.0, 1.35))
    view, box = _view(rng, shape)
    colour = rng.dirichlet(np.full(len(MUCOSA), 0.7)).astype(np.float32) @ MUCOSA
    light = _light(rng, shape)
    frame = _mucosa(rng, shape, colour)
    for _ in range(rng.integers(1, 4)):
        _draw_patch(rng, frame)
    mask = np.zeros(shape, bool)
    for rho in _lesions(rng, view):
        _draw_lesion(rng, frame, rho, colour)
        mask |= _largest(view & (rho < 1))
    frame = 1 - np.exp(-1.7 * frame * light[..., None])  # bright parts saturate softly, so their texture stays
    _draw_highlights(rng, frame)
    frame *= cv2.GaussianBlur(view.astype(np.float32), (0, 0), 0.6)[..., None]
    image = (frame.clip(0, 1) * 255).astype(np.uint8)
    _draw_box(rng, image, box)
    _draw_text(rng, image)
    return _recompress(image, int(rng.integers(60, 95))), mask.astype(np.uint8) * 255


def phantom_dataset(count: int, seed: int = 0, size: int = 256) -> datasets.Dataset:
    """Frames 0 to count - 1 of `seed` as encoded files: columns name, image (JPEG) and annotation (PNG, 0 or 255).

    Both image columns are `datasets.Image(decode=False)`: {"bytes", "path"}. Raises UserError when count is below 1
    or size below 64.
    """
    _require("count", count, 1)
    _require("size", size, 64)
    files = datasets.Image(decode=False)
    features = datasets.Features(name=datasets.Value("string"), image=files, annotation=files)
    return datasets.Dataset.from_list([_row(seed, index, size) for index in range(count)], features=features)


def phantom_parts(count: int = 240, seed: int = 0, size: int = 256) -> datasets.DatasetDict:
    """The three PARTS: `count` frames to train on, a sixth for validation and a quarter to test on, each at least 1.

    Part p of `seed` holds frames of the seed 3 * seed + p, so no two parts of any seed share a frame. Raises
    UserError when count is below 1 or size below 64.
    """
    counts = count, max(1, count // 6), max(1, count // 4)
    return datasets.DatasetDict(
        {
            part: phantom_dataset(frames, len(PARTS) * seed + number, size)
            for number, (part, frames) in enumerate(zip(PARTS, counts, strict=True))
        }
    )


def _require(field: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{field} must be {least} or more, got {value}: pass {field}={least} or a larger number")


def _row(seed: int, index: int, size: int) -> dict:
    image, mask = phantom(seed, index, size)
    name = f"phantom-{seed}-{index:05d}"
    return {
        "name": name,
        "image": {"bytes": _jpeg(image, 92).tobytes(), "path": f"{name}.jpg"},
        "annotation": {"bytes": cv2.imencode(".png", mask)[1].tobytes(), "path": f"{name}.png"},
    }


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]


def _recompress(image: np.ndarray, quality: int) -> np.ndarray:
    return np.ascontiguousarray(cv2.imdecode(_jpeg(image, quality), cv2.IMREAD_COLOR)[..., ::-1])


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise float32 H x W of about unit deviation, with `cells` grid points over the height."""
    grid = rng.standard_normal((cells, max(2, round(cells * shape[1] / shape[0]))), np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC) * 1.3  # interpolation shrinks the deviation


def _grid(shape: tuple[int, int], centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (x, y) in pixels from centre = (x, y), float32 1 x W and H x 1."""
    x, y = np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32)
    return (x - np.float32(centre[0]))[None], (y - np.float32(centre[1]))[:, None]


def _view(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The visible field, bool H x W, and (width, height) in pixels of the box lower left, (0, 0) for none."""
    height, width = shape
    left, right = rng.integers(0, max(1, width // 14), 2) * (rng.random() < 0.6) + height // 50
    top = height // 60
    cut = round(height * rng.uniform(0.12, 0.3)) if rng.random() < 0.6 else 0
    x0, y0, x1, y1 = int(left), top, width - 1 - int(right), height - 1 - top
    corners = [(x0 + cut, y0), (x1 - cut, y0), (x1, y0 + cut), (x1, y1 - cut)]
    corners += [(x1 - cut, y1), (x0 + cut, y1), (x0, y1 - cut), (x0, y0 + cut)]
    view = cv2.fillPoly(np.zeros(shape, np.uint8), [np.array(corners, np.int32)], 1).astype(bool)
    box = (rng.uniform(0.22, 0.32, 2) * (width, height)).astype(int) * (rng.random() < 0.4)
    view[height - box[1] :, : box[0]] = False
    return view, (int(box[0]), int(box[1]))


def _light(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Illumination float32 H x W: a vignette about a bright side, and slow unevenness."""
    x, y = _grid(shape, rng.uniform(0.25, 0.75, 2) * shape[::-1])
    distance = (x * x + y * y) / np.float32(shape[0] * shape[1])
    return rng.uniform(0.9, 1.25) * np.exp(-rng.uniform(0.5, 1.6) * distance) * np.exp(0.10 * _noise(rng, shape, 3))


def _mucosa(rng: np.random.Generator, shape: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """The wall, float32 H x W x 3 about `colour`: slow tints, folds, vessels, and a lumen in half of the frames."""
    shade = 0.07 * _noise(rng, shape, 5) + 0.05 * _noise(rng, shape, 14) + 0.025 * _noise(rng, shape, 40)
    shade += _folds(rng, shape) - _vessels(rng, shape)
    tint = np.stack([_noise(rng, shape, 4), _noise(rng, shape, 4)], -1) @ TINTS
    return colour * np.exp(tint + shade[..., None])


def _folds(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Log brightness float32 H x W of arcs about a point, each a rise and a drop; at times a dark lumen there."""
    height, width = shape
    lumen = rng.random() < 0.5
    centre = rng.uniform(0.2, 0.8, 2) if lumen else rng.uniform(-0.6, 0.0, 2)
    x, y = _grid(shape, centre * (width, height))
    distance = np.sqrt(x * x + (y * rng.uniform(0.8, 1.4)) ** 2) / height + 0.03 * _noise(rng, shape, 5)
    distance = distance.clip(0.02)
    phase = (np.log(distance) * rng.uniform(2.0, 3.5) if lumen else distance * rng.uniform(3, 6)) % 1
    crest = np.minimum(phase, (1 - phase) * rng.uniform(5, 12)) - 0.4  # a slow rise and a steep drop
    folds = rng.uniform(0.2, 0.9) * crest * _noise(rng, shape, 4).clip(0, 1.2)
    if lumen:
        folds -= rng.uniform(1.2, 2.5) * np.exp(-((distance / rng.uniform(0.1, 0.3)) ** 2))
    return folds


def _vessels(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Darkness float32 H x W, 0 to about 0.3, of thin branching lines."""
    canvas = np.zeros(shape, np.uint8)
    branches = [(rng.uniform(0, 1, 2) * shape[::-1], rng.uniform(0, 2 * np.pi), 3) for _ in range(rng.integers(2, 7))]
    while branches:
        start, angle, order = branches.pop()
        angles = angle + rng.normal(0, 0.35, 9).cumsum()
        steps = np.stack([np.cos(angles), np.sin(angles)], -1) * shape[0] * 0.028
        points = start + np.vstack([[0, 0], steps.cumsum(0)])
        cv2.polylines(canvas, [np.int32(points * 8)], False, 85 * order, 1, cv2.LINE_AA, 3)
        if order > 1:
            branches += [(points[rng.integers(4, 10)], angles[-1] + turn, order - 1) for turn in rng.normal(0, 0.9, 2)]
    return cv2.GaussianBlur(canvas, (0, 0), shape[0] / 400) * np.float32(rng.uniform(0.1, 0.35) / 255)


def _outline(rng: np.random.Generator, shape: tuple[int, int], centre: np.ndarray, radius: float) -> np.ndarray:
    """Distance from the centre over the outline's radius in that direction, float32 H x W: below 1 is inside."""
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    orders = np.array([2, 3, 4, 5, 7])
    waves = rng.normal(0, 0.3 / orders**1.5) @ np.cos(orders[:, None] * angles + rng.uniform(0, 7, (5, 1)))
    table = (radius * np.exp(waves.clip(-0.35, 0.3))).astype(np.float32)
    x, y = np.broadcast_arrays(*_grid(shape, centre))
    distance, angle = cv2.cartToPolar(x.copy(), y.copy(), angleInDegrees=True)
    return distance / table[(angle * 2).astype(np.int32) % 720]


def _lesions(rng: np.random.Generator, view: np.ndarray) -> list[np.ndarray]:
    """Outlines of one to three lesions, apart: the first of about 1 to 40 % of the frame, others 0.6 to 5 %."""
    height, width = view.shape
    free, outlines = view.copy(), []
    for number in range(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])):
        low, high, margin = (0.006, 0.05, 1.4) if number else (0.012, 0.42, 0.7)
        radius = np.sqrt(np.exp(rng.uniform(np.log(low), np.log(high))) * height * width / np.pi)
        room = cv2.distanceTransform(free.astype(np.uint8), cv2.DIST_L2, 3)
        room[:, : width // 6] = 0  # the burnt-in text would hide a small one
        if number and room.max() < margin * radius:
            break
        spots = np.flatnonzero(room >= min(margin * radius, room.max()))
        row, column = divmod(int(rng.choice(spots)), width)
        outlines.append(_outline(rng, view.shape, (column, row), radius))
        free &= outlines[-1] > 1 + 0.08 * height / radius
    return outlines


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a bool H x W mask."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def _draw_lesion(rng: np.random.Generator, frame: np.ndarray, rho: np.ndarray, colour: np.ndarray) -> None:
    """Paints a dome with a dark rim and a pit pattern where rho < 1, and a shadow about it, into frame H x W x 3."""
    shape = rho.shape
    inside = np.minimum(rho, 1)
    slope_y, slope_x = np.gradient(inside * inside)
    side = rng.uniform(0, 2 * math.pi)
    radius = math.sqrt(np.count_nonzero(rho < 1) / math.pi)  # pixels
    tilt = (slope_x * math.cos(side) + slope_y * math.sin(side)) * radius / 2
    dome = 0.35 * np.sqrt(1 - inside * inside) - 0.3 * inside * inside + rng.uniform(0.1, 0.4) * tilt
    pits = 0.08 * np.abs(_noise(rng, shape, 60)) + 0.06 * _noise(rng, shape, 14)
    shade = dome + pits + rng.normal(-0.12, 0.17)
    tint = rng.standard_normal(2, np.float32) @ TINTS
    alpha = ((1 - rho) * radius + 0.5).clip(0, 1)[..., None]
    shadow = 1 - 0.35 * np.exp(-(rho - 1).clip(0) * radius / (0.02 * shape[0]))
    frame *= shadow[..., None]
    frame += alpha * (colour * np.exp(tint + shade[..., None]) - frame)


def _draw_patch(rng: np.random.Generator, frame: np.ndarray) -> None:
    """Paints a distractor into frame: a flat patch, lighter or darker, sharp or smooth, with the mucosa's texture."""
    shape = frame.shape[:2]
    radius = shape[0] * rng.uniform(0.06, 0.28)
    rho = _outline(rng, shape, rng.uniform(0.1, 0.9, 2) * shape[::-1], radius)
    softness = float(rng.choice([1.5, 0.1 * radius, 0.4 * radius]))  # pixels
    alpha = ((1 - rho) * radius / softness + 0.5).clip(0, 1)
    change = float(rng.choice([-0.35, 0.3])) * rng.uniform(0.5, 1.3) + rng.standard_normal(2, np.float32) @ TINTS
    frame *= np.exp(alpha[..., None] * change)


def _draw_highlights(rng: np.random.Generator, frame: np.ndarray) -> None:
    """Adds clusters of small white reflections to frame H x W x 3, wherever they fall."""
    shape = frame.shape[:2]
    spots = _noise(rng, shape, int(rng.integers(26, 44))) + 0.7 * _noise(rng, shape, 5)
    alpha = ((spots - rng.uniform(3.0, 3.9)) * 3).clip(0, 0.95)[..., None]
    frame += alpha * (1 - frame)


def _draw_box(rng: np.random.Generator, image: np.ndarray, box: tuple[int, int]) -> None:
    """Fills the picture-in-picture box lower left of image: black, or green with the outline of a scope."""
    width, height = box
    green = rng.random() < 0.4
    points = rng.uniform(0.2, 0.8, (5, 2)) * box + (0, image.shape[0] - height)
    if width and green:
        image[-height:, :width] = rng.integers((0, 90, 40), (30, 150, 90))
        cv2.polylines(image, [np.int32(points)], False, (150, 220, 170), max(1, width // 30), cv2.LINE_AA)


def _draw_text(rng: np.random.Generator, image: np.ndarray) -> None:
    """Burns one to six short lines of letters and digits into the upper left of image."""
    height = image.shape[0]
    top, grey = height * rng.uniform(0.06, 0.3), int(rng.integers(170, 256))
    for line in range(rng.integers(1, 7)):
        text = "".join(rng.choice(ALPHABET, rng.integers(3, 10)))
        position = round(height * 0.02), round(top + line * height * 0.055)
        cv2.putText(image, text, position, cv2.FONT_HERSHEY_PLAIN, height / 420, (grey,) * 3, 1, cv2.LINE_AA)
