"""Configuration of UNet 3+ (Huang et al. 2020)."""

from hub_unets.configuration.configuration_unetplusplus import UNetPlusPlusConfig


class UNet3PlusConfig(UNetPlusPlusConfig):
    """The fields of a U-Net, and deep supervision.

    Args:
        decoder_channels: widths of the convolution behind each full-scale connection, one for each level, deepest
            first; None takes 64 everywhere, as the paper does.
        deep_supervision: in training, logits from every level and from the encoder's deepest map.
    """

    model_type = "unet3plus"

    def __init__(self, **kwargs):  # keep it: without it transformers writes its own `__init__`
        super().__init__(**kwargs)
