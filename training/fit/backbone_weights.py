"""ImageNet weights for a model's backbone: from timm's Hub, or a local file; never silently none."""

import logging
from pathlib import Path

import torch

from hub_unets.modeling.encoder import create_backbone
from hub_unets.training.errors import UserError, first_line


def load_backbone_weights(model, source):
    """Copy pretrained weights into `model.encoder.backbone`.

    Args:
        model: one of our models with a timm backbone.
        source: "timm" downloads timm's default weights, "none" keeps the random ones, anything else is a local file
            (.safetensors, or a .pth of tensors) with timm's key names, or a folder that holds it under the
            backbone's name, `mobilenetv2_100.safetensors`.

    Raises:
        OSError: the download failed or there is no such file; says what else can be given.
        UserError: the file does not hold this backbone's weights.
    """
    if source == "none":
        return
    name = model.config.backbone
    overlay = None
    if source != "timm":
        if Path(source).is_dir():
            source = str(Path(source) / f"{name}.safetensors")
        if not Path(source).is_file():
            raise UserError(f"backbone_weights: there is no file {source}; {_alternatives(name)}.")
        overlay = {"file": source}
    random = _create(name, model.config.num_channels, pretrained=False)
    try:
        loaded = _create(name, model.config.num_channels, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # the Hub client, timm and safetensors each raise their own
        if source != "timm":
            raise UserError(f"backbone_weights: {source} does not fit {name}: {first_line(error)}") from error
        raise OSError(
            f"the ImageNet weights of {name} could not be downloaded ({first_line(error)}); {_alternatives(name)}."
        ) from error
    _require_all_loaded(random, loaded, name, source)
    model.encoder.backbone.load_state_dict(loaded.state_dict())


def _create(name, num_channels, **options):
    """The backbone from one seed; timm's warning about unused classification weights is silenced."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return create_backbone(name, num_channels, **options)
    finally:
        logger.setLevel(level)


def _require_all_loaded(random, loaded, name, source):
    """timm skips missing keys in silence; a weight that is still the random one (same seed) was not in the file."""
    missing = [
        key
        for (key, before), after in zip(random.state_dict().items(), loaded.state_dict().values(), strict=True)
        if (before.dim() > 1 or key.endswith("running_mean")) and torch.equal(before, after)
    ]
    if missing:
        raise UserError(
            f"backbone_weights: {source} lacks {len(missing)} weights of {name}, {missing[0]} among them: it is "
            "another model's, or its keys are not timm's."
        )


def _alternatives(name):
    return (
        f"give a local file with timm's weights of {name} (--backbone_weights FILE.safetensors), or train from "
        "scratch (--backbone_weights none)"
    )
