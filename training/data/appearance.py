"""Light and stains of the colon that albumentations has no transform for: glare, over-exposure, dye."""

import albumentations
import cv2
import numpy as np

from hub_unets.training.data.polyp_free import DARK
from hub_unets.training.errors import UserError


class Glare(albumentations.ImageOnlyTransform):
    """White reflections of the lamp on wet mucosa, none in black margins, and a part of the frame over-exposed.

    Args:
        spots: least and greatest number of reflections, each .4 to 4 % of the frame's side long.
        gain: least and greatest factor of the brightness where the frame is lit most; around it falls to 1.
        p: share of the samples that it is tried on.
    """

    class InitSchema(albumentations.ImageOnlyTransform.InitSchema):
        spots: tuple[int, int]
        gain: tuple[float, float]

    def __init__(self, spots=(0, 12), gain=(1.0, 2.5), p=0.2):
        super().__init__(p=p)
        if not 0 <= spots[0] <= spots[1] or not 1 <= gain[0] <= gain[1]:
            raise UserError(
                "spots must be two numbers from 0 and gain two from 1, the lower first, got "
                f"{list(spots)} and {list(gain)}."
            )
        self.spots, self.gain = spots, gain

    def get_params_dependent_on_data(self, params, data):
        draw = self.random_generator
        height, width = data["image"].shape[:2]
        lit = 1 + (draw.uniform(*self.gain) - 1) * _bump(draw, height, width)
        white = np.zeros((height, width), np.float32)
        for _ in range(draw.integers(self.spots[0], self.spots[1] + 1)):
            center = (draw.uniform(size=2) * (width, height)).astype(int).tolist()
            axes = np.maximum(draw.uniform(0.004, 0.04, 2) * max(height, width) / 2, 1).astype(int).tolist()
            cv2.ellipse(white, center, axes, draw.uniform(0, 180), 0, 360, draw.uniform(0.6, 1), -1)
        white *= data["image"].max(axis=2) >= DARK
        return {"lit": lit[..., None], "white": cv2.GaussianBlur(white, (0, 0), max(height, width) / 300)[..., None]}

    def apply(self, img, lit, white, **params):
        changed = np.minimum(img * lit, 255)
        return np.rint(changed + (255 - changed) * white).astype(np.uint8)


class Dye(albumentations.ImageOnlyTransform):
    """Blue, green or brown dye on a part of the mucosa, or, one time in three, a cast over all of it.

    The dyed pixel is the dye's colour at the pixel's brightness.

    Args:
        strength: least and greatest share of the dye's colour, in 0..1, where there is most of it.
        p: share of the samples that it is tried on.
    """

    class InitSchema(albumentations.ImageOnlyTransform.InitSchema):
        strength: tuple[float, float]

    def __init__(self, strength=(0.15, 0.7), p=0.1):
        super().__init__(p=p)
        if not 0 <= strength[0] <= strength[1] <= 1:
            raise UserError(f"strength must be two shares in 0..1, the lower first, got {list(strength)}.")
        self.strength = strength

    def get_params_dependent_on_data(self, params, data):
        draw = self.random_generator
        height, width = data["image"].shape[:2]
        dyed = 1.0 if draw.random() < 1 / 3 else _patches(draw, height, width)
        colour = np.float32(COLOURS[draw.integers(len(COLOURS))]) * draw.uniform(0.8, 1.2, 3).astype(np.float32)
        return {"dyed": np.float32(draw.uniform(*self.strength)) * dyed, "colour": colour}

    def apply(self, img, dyed, colour, **params):
        grey = cv2.cvtColor(img, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        changed = img + dyed * (grey * colour - img)
        return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


COLOURS = (0.35, 0.8, 1.7), (0.25, 0.6, 1.3), (0.4, 1.3, 1.1), (1.5, 0.9, 0.35), (0.7, 1.1, 1.0)


def _bump(draw, height, width):
    """A smooth hill of height 1, float32 H x W, at a random place."""
    center = draw.uniform(size=2)
    deviation = draw.uniform(0.15, 0.6)
    rows = np.exp(-0.5 * ((np.linspace(0, 1, height) - center[0]) / deviation) ** 2)
    columns = np.exp(-0.5 * ((np.linspace(0, 1, width) - center[1]) / deviation) ** 2)
    return np.outer(rows, columns).astype(np.float32)


def _patches(draw, height, width):
    """Smooth patches of 1 on 0, float32 H x W x 1."""
    coarse = draw.uniform(-1, 1, (5, 5)).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (1 / (1 + np.exp(-4 * field)))[..., None]
