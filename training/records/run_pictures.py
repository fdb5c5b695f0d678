"""The pictures of a run: curves, thresholds, reliability, what the network saw, typical and worst cases."""

from pathlib import Path

import numpy as np
import torch

from hub_unets.modeling.intensities import picture
from hub_unets.training.data.reading import read_image, read_labels
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.models import pixel_values
from hub_unets.training.measure.score import CURVE_THRESHOLDS
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
    dice = metrics_from_counts(np.stack(part_scores.counts))["dice"].mean(axis=1)
    by_name = {name: index for index, name in enumerate(rows["name"])}
    for kind, names in zip(("typical", "worst"), pictures.pick_cases(dice, part_scores.names), strict=True):
        cases = [
            case(rows[by_name[name]], model, processor, dice[part_scores.names.index(name)], boundary_width)
            for name in names
        ]
        title = f"{kind.capitalize()} {part} cases"
        pictures.prediction_grid(cases, folder / f"{kind}.png", title, model.config.id2label)


@torch.inference_mode()
def case(row, model, processor, dice, boundary_width=None):
    """What a grid shows of one image."""
    image = read_image(row["image"], row["name"], processor)
    truth = read_labels(row["annotation"], row["name"], model.config.num_labels, boundary_width)
    outputs = model(pixel_values(model, processor, image))
    prediction = processor.post_process_semantic_segmentation(outputs, target_sizes=[truth.shape])[0]
    return {
        "name": row["name"],
        "image": picture(image),
        "truth": truth,
        "prediction": prediction.cpu().numpy(),
        "dice": float(dice),
    }


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
