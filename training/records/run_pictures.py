"""The pictures of a run: curves, thresholds, reliability, what the network saw, typical and worst cases."""

from pathlib import Path

import numpy as np
from PIL import Image

from hub_unets.modeling.intensities import picture
from hub_unets.training.data.reading import read_image, read_labels
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.score import CURVE_THRESHOLDS
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.records import curves, pictures
from hub_unets.training.records.curves import reliability


def draw(folder, history, scores, rows, model, processor, boundary_width=None):
    """The run's pictures: curves, thresholds on validation, reliability, typical and worst cases of the last part."""
    folder = Path(folder)
    curves.training_curves(history, folder / "curves.png")
    validation = scores["validation"]
    if validation.tables:
        metrics = validation.by_threshold / len(validation.names)
        path = folder / "thresholds.png"
        curves.threshold_curves(CURVE_THRESHOLDS, *metrics, path, chosen=processor.mask_threshold)
    reliability(scores, folder / "reliability.png")
    part, part_scores = [*scores.items()][-1]
    dice = metrics_from_counts(np.asarray(part_scores.counts))["dice"].mean(axis=1)
    by_name = {name: index for index, name in enumerate(rows["name"][:])}
    for kind, names in zip(("typical", "worst"), pictures.pick_cases(dice, part_scores.names), strict=True):
        cases = [
            case(rows[by_name[name]], model, processor, dice[part_scores.names.index(name)], boundary_width)
            for name in names
        ]
        title = f"{kind.capitalize()} {part} cases"
        pictures.prediction_grid(cases, folder / f"{kind}.png", title, model.config.id2label)


def case(row, model, processor, dice, boundary_width=None):
    """What a grid shows of one image."""
    image = read_image(row["image"], row["name"], processor)
    truth = read_labels(row["annotation"], row["name"], model.config.num_labels, boundary_width)
    (prediction,), _ = Segmenter(model, processor)([image])
    return {
        "name": row["name"],
        "image": picture(image),
        "truth": truth,
        "prediction": prediction,
        "dice": float(dice),
    }


def save_mask(path, mask, num_labels):
    """A mask, integer H x W, as PNG: 0 and 255 of two labels, else class indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((mask * (255 if num_labels == 2 else 1)).astype(np.uint8)).save(path)


def draw_first_batch(training, processor, path, count=8):
    """The first augmented samples, un-normalised, with their masks."""
    keys = [
        (0, int(index)) for index in np.random.default_rng([training.augmentation.seed, 0]).permutation(len(training))
    ]
    items = [training[key] for key in keys[:count]]
    mean, std = (np.array(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    values = [(item["pixel_values"].numpy() * std + mean).transpose(1, 2, 0) for item in items]
    if processor.takes_rgb:
        values = [np.rint(image * 255).clip(0, 255).astype(np.uint8) for image in values]
    images = list(map(picture, values))
    pictures.first_batch(images, [item["labels"].numpy() for item in items], path, max_images=count)
