"""Augmentation as a recipe writes it: a list of albumentations transforms and of ours.

Ours are in `training.data`: polyp_free, zoom, screen, appearance. Every draw is a pure function of (seed, epoch,
index), never of a global generator or a worker: a resumed run, two workers or two processes see the same pixels.
"""

import difflib
import inspect
import os

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions at import
import albumentations

from hub_unets.training.data import appearance, polyp_free, screen, zoom
from hub_unets.training.errors import UserError

TRIALS = 3  # draws of a transform that is tried
USUAL = (
    *("HorizontalFlip", "VerticalFlip", "RandomRotate90", "Affine", "Rotate", "ElasticTransform", "GridDistortion"),
    *("RandomBrightnessContrast", "RandomGamma", "GaussNoise", "GaussianBlur", "CoarseDropout", "ChannelDropout"),
    *("PolypFreeCrop", "CloseUp"),
)
RGB_ALONE = polyp_free.PaintOut, screen.Screen, appearance.Glare, appearance.Dye  # they paint colours of 8 bits


class Augmentation:
    """Image and mask H x W to the same, changed by the transforms that `spec` lists.

    An image is uint8 H x W x 3, or float32 H x W x C in 0..1 (see `require_channels`).

    A call may name `frames`, a sequence of (image, mask), from which a transform may take a second picture.

    Args:
        spec: one-key dictionaries, `[{"HorizontalFlip": {"p": 0.5}}, {"Rotate": {"limit": 30}}]`; an empty list
            changes nothing.
        seed: the run's.

    Raises:
        UserError: a transform or an argument that albumentations does not have, with the nearest that it has.
    """

    def __init__(self, spec, seed):
        if not isinstance(spec, list):
            raise UserError(f"augmentation must be a list like [{{HorizontalFlip: {{p: 0.5}}}}], got {spec!r}.")
        self.seed = seed
        self.compose = albumentations.Compose([_transform(entry) for entry in spec])

    def __call__(self, image, mask, epoch, index, frames=()):
        self.compose.set_random_seed(int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]))
        changed = self.compose(image=image, mask=mask, frames=frames)
        return changed["image"], changed["mask"]

    def require_channels(self, num_channels):
        """Raise UserError, naming the others, where a transform can't take float32 images of so many channels."""
        for transform in self.compose.transforms:
            if not _takes(transform, num_channels):
                fitting = [name for name in USUAL if _takes(TRANSFORMS[name](), num_channels)]
                raise UserError(
                    f"augmentation {type(transform).__name__} can't take images of {num_channels} channels of floats "
                    f"(model.num_channels, intensity): leave it out, or take others, such as {', '.join(fitting)}."
                )


def _takes(transform, num_channels):
    """Whether a transform, where it is applied, changes a float32 image of `num_channels` into another one in 0..1."""
    if isinstance(transform, RGB_ALONE):
        return False
    image = np.random.default_rng(0).random((64, 64, num_channels), np.float32)
    mask = np.zeros((64, 64), np.uint8)
    mask[12:20, 16:28] = 1
    probability, transform.p = transform.p, 1.0
    compose = albumentations.Compose([transform])
    try:
        for seed in range(TRIALS):
            compose.set_random_seed(seed)
            changed = compose(image=image, mask=mask, frames=())["image"]
            is_alike = changed.shape == image.shape and changed.dtype == image.dtype
            if not (is_alike and np.isfinite(changed).all() and changed.min() >= 0 and changed.max() <= 1):
                return False
    except Exception:  # OpenCV and albumentations raise errors of many classes
        return False
    finally:
        transform.p = probability
    return True


def _transform(entry):
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError(f"augmentation must list entries like {{HorizontalFlip: {{p: 0.5}}}}, got {entry!r}.")
    ((name, arguments),) = entry.items()
    arguments = arguments or {}
    if name not in TRANSFORMS:
        _refuse(f"augmentation {name!r} is not an albumentations transform", str(name), TRANSFORMS)
    if not isinstance(arguments, dict):
        raise UserError(f"augmentation {name} takes its arguments by name, like {{p: 0.5}}, got {arguments!r}.")
    kind = TRANSFORMS[name]
    known = [*inspect.signature(kind.__init__).parameters][1:]
    for argument in arguments:
        if argument not in known:
            _refuse(f"augmentation {name} has no argument {argument!r}", argument, known)
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"augmentation {name}: {error}") from error


def _is_transform(kind):
    return inspect.isclass(kind) and issubclass(kind, albumentations.BasicTransform)


TRANSFORMS = {
    name: kind
    for module in (albumentations, polyp_free, zoom, screen, appearance)
    for name, kind in vars(module).items()
    if _is_transform(kind)
}


def _refuse(message, name, known):
    best = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise UserError(f"{message}; did you mean {best[0]}?")
