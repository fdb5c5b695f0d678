"""Anyone's masks scored as `hub-unets evaluate` scores a model: the same counts, rules and intervals."""

import itertools

import numpy as np

from hub_unets.training.data.reading import IGNORE
from hub_unets.training.errors import UserError
from hub_unets.training.measure.score import Scores


def score_masks(predictions, references, classes=((1,),)):
    """Score predicted masks of any sizes, each against its true mask at the image's original size.

    Args:
        predictions, references: iterables of arrays H x W, one an image: bool, class indices, or black and white (0
            and 255 alone). Beside class indices 255 is ignored in a reference.
        classes: for each foreground class the labels of the predictions that count as it; the references hold the
            class's number, from 1.

    Returns:
        What results.json holds of a part, without what takes probabilities: images, per_image, pooled; of one class
        also by_size, polyps and, with the extra `report`, boundary; of several per_class and with_background. Every
        mean is a dictionary of value, low and high: see `training.measure.metrics`.

    Raises:
        UserError: no image, a mask of another kind or size, a reference with another class.
    """
    scores = Scores(class_names=[str(number) for number in range(1, len(classes) + 1)])
    for number, prediction, reference in _pairs(predictions, references):
        mask, truth = _labels(prediction, f"prediction {number}"), _labels(reference, f"reference {number}")
        if mask.shape != truth.shape:
            raise UserError(f"prediction {number} is {mask.shape}, its reference {truth.shape}: give the same H x W.")
        others = np.setdiff1d(truth, [*range(len(classes) + 1), IGNORE])
        if others.size:
            raise UserError(
                f"reference {number} holds {others[:8].tolist()}, but classes says what counts as 1 to "
                f"{len(classes)}: name every class, or make one of them."
            )
        scores.add_mask(str(number), truth, mask, classes)
    if not scores.names:
        raise UserError("there is no image to score: give at least one prediction and its reference.")
    return scores.summary()


def _pairs(predictions, references):
    pairs = itertools.zip_longest(predictions, references)
    for number, (prediction, reference) in enumerate(pairs):
        if prediction is None or reference is None:
            missing = "prediction" if prediction is None else "reference"
            raise UserError(f"image {number} has no {missing}: give one prediction and one reference for every image.")
        yield number, prediction, reference


def _labels(mask, source):
    """A mask as class indices, H x W of whole numbers; white is 1 where there are black and white alone."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "biu":
        raise UserError(
            f"{source} is {mask.dtype} of shape {mask.shape}: give bool or class indices, H x W; of probabilities, "
            "`probabilities > threshold`."
        )
    is_black_and_white = mask.dtype == bool or (IGNORE in mask and np.isin(mask, (0, IGNORE)).all())
    return (mask > 0).astype(np.uint8) if is_black_and_white else mask
