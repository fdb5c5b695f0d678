"""The screens of other endoscopy processors: margins, shapes of the view, second pictures, boxes and text."""

import albumentations
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from hub_unets.modeling.view import view_of
from hub_unets.training.errors import UserError

PLACES = 16  # tried for a second picture; the one that covers least of the view is taken
OVER = 0.25  # share of the pieces that lie over the view, not below it
CHARACTERS = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:/.-"]


class Screen(albumentations.DualTransform):
    """The view of the frame, cut from its own margins, on a screen as another processor might show it.

    The view is resized and gets a place and a shape: a rectangle, cut corners, or an ellipse; the rest is nearly
    black. Beside it, and one time in four over it, are a second picture, coloured boxes and lines of text. The second
    picture is another frame of `frames`, or the frame itself where there is none; its polyp is background, as is
    what a box or a picture covers.

    Args:
        width: least and greatest share of the screen's width that the view takes.
        height: the same of its height.
        second_picture: share of the screens that have one.
        boxes: most coloured boxes on a screen.
        lines: most lines of text on a screen.
        p: share of the samples that it is tried on.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    class InitSchema(albumentations.DualTransform.InitSchema):
        width: tuple[float, float]
        height: tuple[float, float]
        second_picture: float
        boxes: int
        lines: int

    def __init__(self, width=(0.45, 1.0), height=(0.6, 1.0), second_picture=0.5, boxes=2, lines=6, p=0.3):
        super().__init__(p=p)
        for name, (low, high) in {"width": width, "height": height}.items():
            if not 0 < low <= high <= 1:
                raise UserError(f"{name} must be two shares in 0..1, the lower first, got {[low, high]}.")
        if not 0 <= second_picture <= 1 or min(boxes, lines) < 0:
            raise UserError(
                "second_picture must lie in 0..1, boxes and lines must not be negative, got "
                f"{second_picture}, {boxes} and {lines}."
            )
        self.width, self.height, self.second_picture = width, height, second_picture
        self.boxes, self.lines = boxes, lines

    def get_params_dependent_on_data(self, params, data):
        draw, image, mask = self.random_generator, data["image"], data["mask"]
        size = np.array(mask.shape)
        extent = np.maximum(np.rint(size * [draw.uniform(*self.height), draw.uniform(*self.width)]), 2).astype(int)
        top, left = np.rint(draw.uniform(size=2) * (size - extent)).astype(int)
        box = np.s_[top : top + extent[0], left : left + extent[1]]
        view = np.zeros(size, bool)
        view[box] = shape = _shape(draw, *extent)
        pieces = self._pieces(data.get("frames") or [(image, mask)], view)
        is_over = draw.random(len(pieces)) < OVER
        screen, labels = np.zeros_like(image), np.zeros_like(mask)
        screen[:] = draw.integers(0, 16, 3, np.uint8)
        for number in np.flatnonzero(~is_over):
            pieces[number](screen, labels)
        part = _box_of(view_of(image))
        view_labels = cv2.resize(mask[part], extent[::-1].tolist(), interpolation=cv2.INTER_NEAREST)
        np.copyto(screen[box], _resized(image[part], extent), where=shape[..., None])
        np.copyto(labels[box], view_labels, where=shape)
        for number in np.flatnonzero(is_over):
            pieces[number](screen, labels)
        return {"screen": screen, "labels": labels}

    def _pieces(self, frames, view):
        """Functions that paint what is not the view into an image and its labels."""
        draw = self.random_generator
        pieces = [_coloured_box(draw, *view.shape) for _ in range(draw.integers(self.boxes + 1))]
        pieces += [_line_of_text(draw, *view.shape) for _ in range(draw.integers(self.lines + 1))]
        if draw.random() < self.second_picture:
            pieces.append(_second_picture(draw, view, frames[int(draw.integers(len(frames)))][0]))
        return pieces

    def apply(self, img, screen, **params):
        return screen

    def apply_to_mask(self, mask, labels, **params):
        return labels


def _resized(image, extent):
    """The image at (height, width); INTER_AREA is antialiased where it shrinks, and blocks where it enlarges."""
    shrinks = extent[0] <= image.shape[0] and extent[1] <= image.shape[1]
    return cv2.resize(image, extent[::-1].tolist(), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _box_of(view):
    """The rows and columns that the True of a boolean H x W lie in."""
    rows, columns = (np.flatnonzero(view.any(axis=axis)) for axis in (1, 0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _shape(draw, height, width):
    """A view's shape, bool height x width: a rectangle one time in three, cut corners or an ellipse."""
    rows = np.abs(np.linspace(-1, 1, height))[:, None]
    columns = np.abs(np.linspace(-1, 1, width))
    kind = draw.integers(3)
    if kind == 0:
        return np.ones((height, width), bool)
    if kind == 1:
        return rows + columns <= draw.uniform(1.4, 1.95)
    power = draw.uniform(2, 6)  # 2: an ellipse; more: rounded corners
    return rows**power + columns**power <= 1


def _coloured_box(draw, height, width):
    """A filled box or its outline, in one colour, at most a third of the screen long."""
    sides = np.maximum(draw.uniform(0.02, 0.33, 2) * (height, width), 1).astype(int)
    top, left = (draw.uniform(size=2) * ((height, width) - sides)).astype(int)
    colour = draw.integers(0, 256, 3, np.uint8)
    line = draw.integers(0, 3)  # pixels; 0: filled

    def paint(image, labels):
        box = np.s_[top : top + sides[0], left : left + sides[1]]
        if line and min(sides) > 2 * line:
            interior = image[box][line:-line, line:-line].copy()
            image[box] = colour
            image[box][line:-line, line:-line] = interior
        else:
            image[box], labels[box] = colour, 0

    return paint


def _line_of_text(draw, height, width):
    """A few letters and digits, white or coloured; the labels below them stay."""
    text = "".join(draw.choice(CHARACTERS, draw.integers(2, 14)))
    position = int(draw.uniform(0, 0.9) * width), int(draw.uniform(0.03, 1) * height)
    scale = draw.uniform(0.1, 0.2) * height / 100  # a letter is 20 scale pixels high
    colour = (255, 255, 255) if draw.random() < 0.5 else draw.integers(80, 256, 3).tolist()

    def paint(image, labels):
        cv2.putText(image, text, position, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)

    return paint


def _second_picture(draw, view, frame):
    """A small picture, mirrored or not, at that one of 16 places where it covers least of the view."""
    sides = np.maximum(draw.uniform(0.12, 0.35) * np.array(view.shape), 1).astype(int)
    sides[1] = max(1, int(sides[1] * draw.uniform(0.7, 1.3)))
    corners = np.rint(draw.uniform(size=(PLACES, 2)) * (view.shape - sides)).astype(int)
    boxes = [np.s_[top : top + sides[0], left : left + sides[1]] for top, left in corners]
    box = min(boxes, key=lambda candidate: np.count_nonzero(view[candidate]))
    small = _resized(frame, sides)
    small = small[:: draw.choice([-1, 1]), :: draw.choice([-1, 1])]

    def paint(image, labels):
        image[box], labels[box] = small, 0

    return paint
