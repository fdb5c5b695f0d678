"""Configuration of the deep residual U-Net (Zhang et al. 2018)."""

from hub_unets.configuration.configuration_unet import UNetConfig


class ResUNetConfig(UNetConfig):
    """The fields of a U-Net; the plain path has three strided steps, as in table 1 of the paper."""

    model_type = "resunet"

    def __init__(self, depth=3, **kwargs):
        super().__init__(depth=depth, **kwargs)

    def check_fields(self):
        """As a U-Net's; residual units add maps of one size, so `valid` padding has no meaning."""
        super().check_fields()
        if self.padding != "same":
            raise ValueError(f"padding must be 'same' for a residual U-Net, got {self.padding!r}.")
