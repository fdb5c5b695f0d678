"""Configuration of the U-Net (Ronneberger et al. 2015): every field that all variants share."""

import warnings

from transformers import PretrainedConfig

CHOICES = {
    "padding": ("same", "valid"),
    "upsample": ("transpose", "bilinear", "nearest"),
    "head_kernel_size": (1, 3),
}


class UNetConfig(PretrainedConfig):
    """What rebuilds a U-Net, and nothing else: no weights, no loss, no threshold.

    Args:
        num_channels: channels of `pixel_values`.
        backbone: a timm model name (`"resnet50"`) whose feature pyramid is the encoder; None is the plain path.
        base_channels: width of the plain path at full resolution; doubles at each level.
        depth: number of 2x2 poolings of the plain path.
        padding: `"same"` keeps the input's size; `"valid"` crops as in 2015 (plain path only).
        batch_norm: batch norm after each 3x3 convolution of the plain path, the detail branch and the decoder.
        detail_channels: width of a small convolutional branch that gives a backbone the full- and half-resolution
            skips it lacks; 0 builds none.
        decoder_channels: widths of the decoder, deepest first, one for each upsampling; None takes the plain path's
            widths, or 256, 128, 64, 32, 16 for a backbone.
        upsample: `"transpose"` (2x2 transposed convolution, halving the width), `"bilinear"` (after a 1x1 convolution)
            or `"nearest"`, which keeps the width, as segmentation-models-pytorch does.
        reduction_channels: width of a 3x3 convolution, batch norm and ReLU before the head; None builds none.
        head_kernel_size: 1, or 3 for a head that sees a pixel's neighbours.
        binary_head: one logit for `id2label[1]` instead of one for each label; off unless there are two labels.
        background_channel: zeros as the background's channel before a binary head's logit, so that `logits` are
            (0, z) and `logits.argmax(1)` is the mask at a probability of .5; no weight changes. For a binary head.
        id2label: the name of each label from 0, `{0: "background", 1: "polyp"}`; `label2id` follows from it. If there
            are not `num_labels` of them, the names are LABEL_0, LABEL_1, ... and a warning says so.
    """

    model_type = "unet"

    def __init__(
        self,
        num_channels=3,
        backbone=None,
        base_channels=64,
        depth=4,
        padding="same",
        batch_norm=True,
        detail_channels=0,
        decoder_channels=None,
        upsample="transpose",
        reduction_channels=None,
        head_kernel_size=1,
        binary_head=None,
        background_channel=False,
        **kwargs,
    ):
        num_labels, id2label = kwargs.get("num_labels"), kwargs.get("id2label")
        if id2label is None and num_labels in (None, 2):
            id2label = {0: "background", 1: "polyp"}
        if id2label is not None:
            kwargs["id2label"] = checked_names(fitting_names(id2label, num_labels))
            kwargs["label2id"] = {name: label for label, name in kwargs["id2label"].items()}
        super().__init__(**kwargs)
        self.num_channels = num_channels
        self.backbone = backbone
        self.base_channels = base_channels
        self.depth = depth
        self.padding = padding
        self.batch_norm = batch_norm
        self.detail_channels = detail_channels
        self.decoder_channels = None if decoder_channels is None else list(decoder_channels)
        self.upsample = upsample
        self.reduction_channels = reduction_channels
        self.head_kernel_size = head_kernel_size
        self.binary_head = self.num_labels == 2 if binary_head is None else binary_head
        self.background_channel = background_channel
        self.check_fields()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As transformers does, with the labels that a call gives in place of the file's before they are checked."""
        given = {name: kwargs.pop(name) for name in ("num_labels", "id2label", "label2id") if name in kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        if "id2label" in given:
            config_dict = {name: value for name, value in config_dict.items() if name != "num_labels"}
        return super().from_dict({**config_dict, **given}, **kwargs)

    def check_fields(self):
        """Raise ValueError, naming the field and the cure, unless the fields describe a network.

        Turns a binary head off unless there are two labels: `num_labels` may have changed since the head was chosen.
        """
        self.binary_head = self.binary_head and self.num_labels == 2
        for field in ("num_channels", "base_channels", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}.")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                names = ", ".join(map(str, choices))
                raise ValueError(f"{field} must be one of {names}, got {getattr(self, field)!r}.")
        if self.num_labels < 2:
            raise ValueError(
                "num_labels=1 leaves no background: keep two labels, {0: 'background', 1: 'polyp'}, and set "
                "binary_head=True for a head of one channel."
            )
        if self.padding == "valid" and self.backbone is not None:
            raise ValueError(f"padding='valid' is for the plain path; backbone={self.backbone!r} pads its own maps.")
        if self.detail_channels and self.backbone is None:
            raise ValueError("detail_channels is for backbones: the plain path has both resolutions already.")
        if self.decoder_channels is not None and self.backbone is None and len(self.decoder_channels) != self.depth:
            raise ValueError(f"decoder_channels needs {self.depth} widths (depth), got {self.decoder_channels}.")

    @property
    def head_channels(self):
        """Channels of the head: 1 for a binary head, else one for each label."""
        return 1 if self.binary_head and self.num_labels == 2 else self.num_labels

    @property
    def num_logits(self):
        """Channels of `logits`: the head's, and the background's before a binary head's where the config asks."""
        return 2 if self.background_channel and self.head_channels == 1 else self.head_channels

    @property
    def valid_margin(self):
        """Pixels that unpadded convolutions take from each border: 92 at depth 4, 0 with `same` padding."""
        return 6 * 2**self.depth - 4 if self.padding == "valid" else 0

    def check_valid_size(self, size):
        """Raise ValueError unless a `valid` network maps a border of `size` pixels with no row lost in pooling."""
        step, smallest = 2**self.depth, 2 * self.valid_margin + 4
        fits = smallest + max(0, (size - smallest + (step - 1) // 2) // step) * step
        if self.padding == "valid" and size != fits:
            raise ValueError(
                f"padding='valid' at depth {self.depth} takes sides of {smallest} + n x {step} pixels (as 572 "
                f"at depth 4) and returns {2 * self.valid_margin} fewer; got {size}, the nearest that fits is {fits}."
            )


def fitting_names(id2label, num_labels):
    """`id2label`, or LABEL_0, LABEL_1, ... where it does not have `num_labels` names, as transformers does it."""
    if num_labels is None or len(id2label) == num_labels:
        return id2label
    warnings.warn(
        f"id2label has not num_labels={num_labels} names: {id2label!r}; they become LABEL_0, ...", stacklevel=3
    )
    return {label: f"LABEL_{label}" for label in range(num_labels)}


def checked_names(id2label):
    """`id2label` with whole numbers as keys, in order: JSON and YAML give texts.

    Raises:
        ValueError: not one name of its own for each label from 0.
    """
    names = {str(label): name for label, name in id2label.items()} if isinstance(id2label, dict) else {}
    labels = [str(label) for label in range(len(names))]
    named = [name for name in names.values() if isinstance(name, str) and name]
    if not names or sorted(names) != sorted(labels) or len(set(named)) < len(names):
        raise ValueError(
            f"id2label must give each label a name of its own, from 0: {{0: background, 1: polyp}}; got {id2label!r}."
        )
    return {int(label): names[label] for label in labels}
