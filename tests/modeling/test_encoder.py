"""Pyramids of timm backbones, and the backbones that have none."""

import pytest
import timm
import torch

from hub_unets.modeling.encoder import probe_backbone
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from tests.variants import BACKBONES, ENCODERS, small_config, small_model


def test_maps_of_resnet50_at_256_pixels():
    with torch.device("meta"):
        encoder = small_model(encoder="resnet18", backbone="resnet50", detail_channels=0).encoder
        full, *maps = encoder(torch.zeros(1, 3, 256, 256))
    assert full is None
    assert [tuple(level.shape[1:]) for level in maps] == [
        (64, 128, 128),
        (256, 64, 64),
        (512, 32, 32),
        (1024, 16, 16),
        (2048, 8, 8),
    ]
    assert encoder.channels == [0, 64, 256, 512, 1024, 2048]


@pytest.mark.parametrize(
    ("encoder", "channels"),
    [
        ("resnet18", [4, 64, 64, 128, 256, 512]),
        ("convnext_atto", [4, 8, 40, 80, 160, 320]),
        ("pvt_v2_b0", [4, 8, 32, 64, 160, 256]),
        ("swin_tiny", [4, 8, 96, 192, 384, 768]),
    ],
)
@torch.no_grad()
def test_detail_branch_gives_the_levels_that_a_backbone_lacks(encoder, channels):
    model = small_model(encoder=encoder).eval()
    maps = model.encoder(torch.rand(1, 3, 96, 64))
    assert model.encoder.channels == channels
    sizes = [(96 >> level, 64 >> level) for level in range(6)]
    assert [tuple(level.shape[1:]) for level in maps] == [
        (width, *size) for width, size in zip(channels, sizes, strict=True)
    ]


@pytest.mark.parametrize("encoder", BACKBONES)
def test_a_backbone_keeps_the_initial_weights_of_timm(encoder):
    small_model(encoder=encoder)  # the probe is cached from here on
    torch.manual_seed(3)
    state = small_model(encoder=encoder).encoder.backbone.state_dict()
    torch.manual_seed(3)
    options = {"strict_img_size": False} if encoder == "swin_tiny" else {}
    reference = timm.create_model(ENCODERS[encoder]["backbone"], features_only=True, pretrained=False, **options)
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in reference.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("resnet5", "'resnet5' is not a timm model; near it are: resnet50"),
        ("!!!!", "is not a timm model; near it are: none"),
        ("maxvit_tiny_tf_224", "'maxvit_tiny_tf_224' can't be a U-Net encoder: .* must be divisible by window"),
        ("vit_tiny_patch16_224", "'vit_tiny_patch16_224' can't be a U-Net encoder: Input height .* doesn't match"),
        ("vgg11", r"'vgg11' can't be a U-Net encoder: its maps have sides \[96, 48, 24, 12, 6, 3\] at 96 px"),
    ],
)
def test_a_backbone_without_a_pyramid_is_refused(backbone, reason):
    config = small_config(encoder="resnet18", backbone=backbone)
    with pytest.raises(ValueError, match=reason):
        UNetForSemanticSegmentation(config)


@pytest.mark.parametrize(
    ("backbone", "strides", "channels_last"),
    [
        ("mobilenetv2_100", (2, 4, 8, 16, 32), False),
        ("efficientnet_b0", (2, 4, 8, 16, 32), False),
        ("swin_tiny_patch4_window7_224", (4, 8, 16, 32), True),
    ],
)
def test_probe_finds_strides_and_layout(backbone, strides, channels_last):
    assert probe_backbone(backbone, 3)[1:] == (strides, channels_last)
