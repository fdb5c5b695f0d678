"""Configuration of the attention U-Net (Oktay et al. 2018)."""

from hub_unets.configuration.configuration_unet import UNetConfig


class AttentionUNetConfig(UNetConfig):
    """The fields of a U-Net; the gates' widths follow from the skips'."""

    model_type = "attention_unet"

    def __init__(self, **kwargs):  # keep it: without it transformers writes its own `__init__`
        super().__init__(**kwargs)
