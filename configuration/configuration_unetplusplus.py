"""Configuration of U-Net++ (Zhou et al. 2018)."""

from hub_unets.configuration.configuration_unet import UNetConfig


class UNetPlusPlusConfig(UNetConfig):
    """The fields of a U-Net, and deep supervision.

    Args:
        deep_supervision: in training, logits from every node of the shallowest skip's level.
    """

    model_type = "unetplusplus"

    def __init__(self, deep_supervision=False, **kwargs):
        self.deep_supervision = deep_supervision
        super().__init__(**kwargs)

    def check_fields(self):
        """As a U-Net's; maps of several depths meet in a node, so `valid` padding has no meaning."""
        super().check_fields()
        if self.padding != "same":
            raise ValueError(f"padding must be 'same' for a U-Net++, got {self.padding!r}.")
