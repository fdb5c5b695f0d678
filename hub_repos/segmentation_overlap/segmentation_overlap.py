"""Dice and its relatives for anyone's masks: `evaluate.load` of this folder, with hub-unets installed."""

import datasets
import evaluate
import numpy as np

from hub_unets.training.measure import metrics


class SegmentationOverlap(evaluate.Metric):
    """Overlap of predicted and true masks, as `training.measure.metrics` defines it."""

    def _info(self):
        masks = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=metrics.__doc__,
            citation="Maier-Hein et al., Metrics reloaded, Nature Methods 2024",
            inputs_description="predictions, references: masks of class indices, H x W each, any sizes; 255 in a "
            "reference is ignored. classes: for each foreground class the labels that count as it; default ((1,),).",
            features=datasets.Features({"predictions": masks, "references": masks}),
        )

    def _compute(self, predictions, references, classes=((1,),)):
        pairs = zip(predictions, references, strict=True)
        counts = [metrics.count_pixels(np.array(prediction), np.array(truth), classes) for prediction, truth in pairs]
        return metrics.summarize(np.stack(counts))
