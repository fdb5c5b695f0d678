"""Configuration of TransUNet (Chen et al. 2021)."""

from hub_unets.configuration.configuration_unet import UNetConfig


class TransUNetConfig(UNetConfig):
    """The fields of a U-Net, and those of the transformer; the defaults are the paper's base model's.

    Args:
        hidden_size: width of a token; a multiple of num_attention_heads.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads of each layer.
        intermediate_size: width inside each layer's perceptron.
        position_grid: side of the learned grid of position embeddings, interpolated to the deepest map's size.
    """

    model_type = "transunet"

    def __init__(
        self,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        position_grid=14,
        **kwargs,
    ):
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.position_grid = position_grid
        super().__init__(**kwargs)

    def check_fields(self):
        """As a U-Net's, and the transformer's widths."""
        super().check_fields()
        for field in ("num_hidden_layers", "intermediate_size", "position_grid"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}.")
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
