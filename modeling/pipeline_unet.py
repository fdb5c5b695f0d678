"""The stock image-segmentation pipeline, with this processor's thresholds as its defaults."""

from transformers import ImageSegmentationPipeline


class UNetImageSegmentationPipeline(ImageSegmentationPipeline):
    """As the stock pipeline, but the union of its entries is the semantic mask.

    The stock class drops entries that score below .9, and with them many true polyps.
    """

    def check_model_type(self, supported_models):
        """Accept any model: the stock list names the architectures inside transformers only."""

    def postprocess(
        self, model_outputs, subtask=None, threshold=None, mask_threshold=None, overlap_mask_area_threshold=None
    ):
        return super().postprocess(model_outputs, subtask, threshold, mask_threshold, overlap_mask_area_threshold)
