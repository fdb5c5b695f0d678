"""Anyone's masks scored by this project's rules: `evaluate.load` of this folder, with hub-unets installed."""

import datasets
import evaluate

from hub_unets.training.measure import metrics
from hub_unets.training.measure.masks import score_masks


class SegmentationOverlap(evaluate.Metric):
    """What `hub-unets evaluate` says of masks, as `training.measure.masks` computes it."""

    def _info(self):
        masks = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=metrics.__doc__,
            citation="Maier-Hein et al., Metrics reloaded, Nature Methods 2024",
            inputs_description=score_masks.__doc__,
            features=datasets.Features({"predictions": masks, "references": masks}),
        )

    def _compute(self, predictions, references, classes=((1,),)):
        return score_masks(predictions, references, classes)
