"""Pyramids of timm backbones, and the backbones that have none."""

import pytest
import timm
import torch

from hub_unets.modeling.encoder import probe_backbone
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from tests.variants import BACKBONES, ENCODERS, small_config, small_model

OPTIONS = {
    "swin_tiny": {"strict_img_size": False},
    "vit": {"dynamic_img_size": True, "out_indices": (1, 3, 5, 8)},
    "eva02": {"dynamic_img_size": True, "out_indices": (2, 5, 8, 11)},
}


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
        ("vit", [4, 8, 24, 48, 96, 96]),
        ("eva02", [4, 8, 48, 96, 192, 192]),
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
    options = OPTIONS.get(encoder, {})
    reference = timm.create_model(ENCODERS[encoder]["backbone"], features_only=True, pretrained=False, **options)
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in reference.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("resnet5", "'resnet5' is not a timm model; near it are: resnet50"),
        ("!!!!", "is not a timm model; near it are: none"),
        ("maxvit_tiny_tf_224", "'maxvit_tiny_tf_224' can't be a U-Net encoder: .* must be divisible by window"),
        ("beit_base_patch16_224", "'beit_base_patch16_224' can't be a U-Net encoder: Input height .* doesn't match"),
        ("mixer_s16_224", "'mixer_s16_224' can't be a U-Net encoder: Input height .* doesn't match"),
        ("tnt_s_patch16_224", "'tnt_s_patch16_224' can't be a U-Net encoder: Input image size .* doesn't match"),
        ("crossvit_9_240", r"'crossvit_9_240' can't be a U-Net encoder: its maps have sides \[20, 14\] at 96 px"),
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
        ("test_vit", (16, 16, 16, 16), False),
        ("vit_small_patch14_reg4_dinov2", (14, 14, 14, 14), False),
        ("vit_small_patch16_dinov3", (16, 16, 16, 16), False),
        ("vit_small_patch8_224", (8, 8, 8, 8), False),
        ("samvit_base_patch16", (16, 16, 16, 16), False),
        ("vit_base_patch16_clip_224", (16, 16, 16, 16), False),
        ("vit_base_patch16_siglip_224", (16, 16, 16, 16), False),
        ("vit_base_patch16_224.mae", (16, 16, 16, 16), False),
        ("eva02_tiny_patch14_224", (14, 14, 14, 14), False),
    ],
)
def test_probe_finds_strides_and_layout(backbone, strides, channels_last):
    layout = probe_backbone(backbone, 3)
    assert (layout.strides, layout.channels_last) == (strides, channels_last)


def test_a_plain_transformer_gives_the_last_block_of_each_quarter():
    encoder = small_model(encoder="vit").eval().encoder
    pixels = torch.rand(1, 3, 64, 96)
    blocks = encoder.backbone.model.blocks
    outputs = []
    hooks = [block.register_forward_hook(lambda *call: outputs.append(call[-1])) for block in blocks]
    maps = encoder.backbone(pixels)
    for hook in hooks:
        hook.remove()
    assert len(outputs) == 9
    for level, block in zip(maps, (1, 3, 5, 8), strict=True):
        assert torch.equal(level.flatten(2), outputs[block][:, 1:].transpose(1, 2))  # the first is a register


@torch.no_grad()
def test_positions_are_interpolated_to_the_grid_of_the_image():
    backbone = small_model(encoder="vit").eval().encoder.backbone
    stored = backbone.model.pos_embed[:, 1:].unflatten(1, (10, 10)).permute(0, 3, 1, 2)  # 160 pixels
    added = []
    hook = backbone.model.norm_pre.register_forward_hook(lambda *call: added.append(call[-1][:, 1:]))
    backbone.model.patch_embed.proj.weight.zero_()
    backbone.model.patch_embed.proj.bias.zero_()
    backbone(torch.rand(1, 3, 160, 320))
    hook.remove()
    expected = torch.nn.functional.interpolate(stored, size=(10, 20), mode="bicubic", antialias=True)
    torch.testing.assert_close(added[0], expected.flatten(2).transpose(1, 2))
