"""A CVAT auto-annotation function: a model's regions as masks, or polygons where CVAT asks for them, with scores.

`cvat-cli task auto-annotate TASK --function-module hub_unets.hub_repos.annotate.cvat -p model=str:REPOSITORY`. The
interface is that of `cvat_sdk.auto_annotation`.
"""

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask

from hub_unets.hub_repos.annotate.regions import Annotator, outline


class RegionFunction:
    """A detection function whose labels are the model's, but for the background.

    Args:
        annotator: an Annotator.
    """

    def __init__(self, annotator):
        self.annotator = annotator
        labels = [cvataa.label_spec(name, label) for label, name in annotator.labels.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context, image):
        """A PIL image to CVAT's shapes; those that score below the context's `conf_threshold` are left out."""
        draw = _polygon if context.conv_mask_to_poly else _mask
        regions, _ = self.annotator(self.annotator.processor.read(image), context.conf_threshold)
        return [draw(region) for region in regions]


def create(model, trust_remote_code=False, revision=None):
    """The function that cvat-cli runs; arguments as of `Annotator`."""
    return RegionFunction(Annotator(model, trust_remote_code, revision))


def _mask(region):
    x, y, width, height = region.box
    *runs, _, _, _, _ = encode_mask(region.mask)  # the last four are the box
    return cvataa.mask(region.label, [*runs, x, y, x + width - 1, y + height - 1], score=region.score)


def _polygon(region):
    return cvataa.polygon(region.label, outline(region).ravel().tolist(), score=region.score)
