"""Every U-Net variant, and small models of each for the tests that all variants share."""

import functools
import itertools

import pytest

from hub_unets.modeling.variants import config_fields, find_variant, variant_names

VARIANTS = variant_names()

SMALL_DECODER = {"decoder_channels": [16, 8, 8, 8, 8], "detail_channels": 4}
SMALL_FIELDS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENCODERS = {
    "plain": {"base_channels": 4, "depth": 3},
    "resnet18": {"backbone": "resnet18", **SMALL_DECODER},
    "convnext_atto": {"backbone": "convnext_atto", **SMALL_DECODER},
    "mobilenetv2_100": {"backbone": "mobilenetv2_100", **SMALL_DECODER},
    "pvt_v2_b0": {"backbone": "pvt_v2_b0", **SMALL_DECODER},
    "swin_tiny": {"backbone": "swin_tiny_patch4_window7_224", **SMALL_DECODER},
    "efficientnet_b0": {"backbone": "efficientnet_b0", **SMALL_DECODER},
    "vit": {"backbone": "test_vit3", **SMALL_DECODER},  # patches of 16 pixels, learned positions, a register
    "eva02": {"backbone": "eva02_tiny_patch14_224", **SMALL_DECODER},  # of 14, learned and rotary, a class token
}
BACKBONES = [name for name in ENCODERS if name != "plain"]

ONE_MORE = ("convnext_atto", "efficientnet_b0", "swin_tiny", "eva02")  # of a kind that another one stands for

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_encoder = pytest.mark.parametrize(
    "encoder", [pytest.param(name, marks=pytest.mark.long if name in ONE_MORE else []) for name in ENCODERS]
)


def each_pair_of(encoders):
    """Every variant on its plain path and every encoder under a U-Net; the other pairs are slow tests."""
    pairs = itertools.product(VARIANTS, encoders)
    return pytest.mark.parametrize(
        ("variant", "encoder"), [pytest.param(*pair, marks=_marks(*pair)) for pair in pairs]
    )


def _marks(variant, encoder):
    if encoder != "plain" and variant != "unet":
        return pytest.mark.slow
    return pytest.mark.long if encoder in ONE_MORE else []


each_pair = each_pair_of(ENCODERS)


def config_class(variant):
    return find_variant(variant)[0]


def model_class(variant):
    return find_variant(variant)[1]


def small_config(variant="unet", encoder="plain", **fields):
    small = {name: value for name, value in SMALL_FIELDS.items() if name in config_fields(config_class(variant))}
    return config_class(variant)(**{**small, **ENCODERS[encoder], **fields})


def small_model(variant="unet", encoder="plain", **fields):
    return model_class(variant)(small_config(variant, encoder, **fields))


@functools.cache
def shared_model(variant, encoder):
    """A small model in evaluation mode for tests that change nothing in it."""
    return small_model(variant, encoder).eval()
