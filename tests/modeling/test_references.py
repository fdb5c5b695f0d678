"""Networks and blocks compared with other implementations that hold our weights, in float64.

Where a whole network of MONAI or segmentation_models_pytorch equals ours for some setting, the logits must be equal;
else the largest part that both share.
"""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, attentionunet
from torch import nn

from hub_unets.benchmarks.smp_weights import renamed, smp_block
from hub_unets.modeling.modeling_attention_unet import AttentionGate
from hub_unets.modeling.modeling_resunet import ResidualUnit
from hub_unets.modeling.modeling_transunet import TransUNetLayer
from hub_unets.modeling.modeling_unetplusplus import UNetPlusPlusDecoder
from tests.variants import BACKBONES, ENCODERS, small_config, small_model

MONAI_CONVOLUTIONS = [(r"\.([01])\.0\.(weight|bias)$", r".conv_\1.conv.\2"), (r"\.([01])\.1\.", r".conv_\1.adn.N.")]
MONAI_UNET = [
    (r"^encoder\.stages\.0\.", "conv_0."),
    (r"^encoder\.stages\.(\d)\.", r"down_\1.convs."),
    (r"^decoder\.blocks\.(\d)", lambda match: f"upcat_{4 - int(match[1])}"),
    (r"^head\.classifier\.", "final_conv."),
]
MONAI_UNETPLUSPLUS = [
    (r"^nodes\.", "upcat_"),
    (r"^auxiliary_heads\.(\d)", lambda match: f"final_conv_0_{1 + int(match[1])}"),
]
MONAI_UPCAT = [(r"(upcat_\w+)\.upsample\.conv", r"\1.upsample.deconv"), (r"(upcat_\w+)\.conv\.", r"\1.convs.")]


def prepared(model):
    """In float64 and evaluation mode, with batch norms that are no identity."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.double().eval()


@pytest.mark.parametrize("batch_norm", [True, False])
@torch.no_grad()
def test_unet_equals_monais(batch_norm):
    norm = "batch" if batch_norm else None
    reference = BasicUNet(2, 3, 1, (4, 8, 16, 32, 64, 8), "relu", norm, bias=not batch_norm).double().eval()
    # MONAI's last upsampling keeps its width
    model = prepared(small_model(depth=4, decoder_channels=[32, 16, 8, 8], batch_norm=batch_norm))
    reference.load_state_dict(renamed(model, *MONAI_UNET, *MONAI_UPCAT, *MONAI_CONVOLUTIONS))
    pixels = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    torch.testing.assert_close(model(pixels).logits, reference(pixels))


@torch.no_grad()
def test_unetplusplus_decoder_equals_monais():
    """With every output of deep supervision; the encoders differ, as MONAI's keeps its width in the first pooling."""
    reference = BasicUNetPlusPlus(2, 3, 1, (4, 4, 8, 16, 32, 4), True, "relu", "batch", bias=False).double()
    config = small_config("unetplusplus", depth=4, decoder_channels=[16, 8, 4, 4], deep_supervision=True)
    decoder = prepared(UNetPlusPlusDecoder(config, [4, 4, 8, 16, 32])).train()
    state = renamed(decoder, *MONAI_UNETPLUSPLUS, *MONAI_UPCAT, *MONAI_CONVOLUTIONS)
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and {key.split(".")[0] for key in missing} == {
        *(f"conv_{level}_0" for level in range(5)), "final_conv_0_4",
    }  # fmt: skip
    pixels = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    features = []
    for level in range(5):
        features.append(reference.get_submodule(f"conv_{level}_0")(features[-1] if features else pixels))
    decoded = decoder(features)
    outputs = [*decoded.auxiliary_logits, reference.final_conv_0_4(decoded.features)]
    torch.testing.assert_close(outputs, reference(pixels))


def check_against_smp(model, reference, blocks):
    """Whole networks with smp's own ResNet-18: `blocks` maps smp's names to (our block, its maps in the skip)."""
    state = renamed(model.encoder.backbone, (r"^", "encoder."))
    for name, (block, nodes) in blocks.items():
        state |= smp_block(block, f"decoder.blocks.{name}", nodes)
    state["segmentation_head.0.weight"] = F.pad(model.head.classifier.weight, (1, 1, 1, 1))  # 1x1 as the middle of 3x3
    state["segmentation_head.0.bias"] = model.head.classifier.bias
    reference.double().eval().load_state_dict(state)
    pixels = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(model(pixels).logits, reference(pixels))


@torch.no_grad()
def test_unet_on_a_backbone_equals_smps():
    fields = {"decoder_channels": [64, 32, 16, 8, 8], "detail_channels": 0, "upsample": "bilinear"}
    model = prepared(small_model("unet", "resnet18", **fields))
    options = {"encoder_weights": None, "decoder_interpolation": "bilinear"}
    reference = smp.Unet("resnet18", decoder_channels=fields["decoder_channels"], **options)
    check_against_smp(model, reference, {str(number): (block, 1) for number, block in enumerate(model.decoder.blocks)})


@torch.no_grad()
def test_unetplusplus_on_a_backbone_equals_smps():
    # in smp every node but a level's last has the width of its skip
    fields = {"decoder_channels": [256, 128, 64, 64, 8], "detail_channels": 0, "upsample": "bilinear"}
    model = prepared(small_model("unetplusplus", "resnet18", **fields))
    options = {"encoder_weights": None, "decoder_interpolation": "bilinear"}
    reference = smp.UnetPlusPlus("resnet18", decoder_channels=fields["decoder_channels"], **options)
    blocks = {}
    for name, node in model.decoder.nodes.items():
        level, column = map(int, name.split("_"))
        blocks[f"x_{5 - level - column}_{4 - level}"] = node, column
    check_against_smp(model, reference, blocks)


@pytest.mark.parametrize("encoder", [name for name in BACKBONES if name not in ("vit", "eva02")])  # smp has one stride
@torch.no_grad()
def test_pyramids_equal_smps(encoder):
    pyramid = prepared(small_model("unet", encoder, detail_channels=0).encoder)
    options = {"strict_img_size": False} if encoder == "swin_tiny" else {}
    reference = smp.encoders.get_encoder(f"tu-{ENCODERS[encoder]['backbone']}", **options).double().eval()
    reference.load_state_dict(renamed(pyramid, (r"^backbone", "model")))
    pixels = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    _, *maps = reference(pixels)  # the first is the image
    assert len(pyramid(pixels)) == 1 + len(maps) == 6
    for feature_map, expected in zip(pyramid(pixels)[1:], maps, strict=True):
        assert expected.shape[1] == 0 if feature_map is None else torch.equal(feature_map, expected)


@torch.no_grad()
def test_attention_gate_equals_monais():
    gate = prepared(AttentionGate(6, 8))
    reference = attentionunet.AttentionBlock(spatial_dims=2, f_int=4, f_g=6, f_l=8).double().eval()
    for convolution in (reference.W_g[0].conv, reference.W_x[0].conv, reference.psi[0].conv):
        convolution.bias.zero_()  # ours has none before a batch norm, which would take it away again
    names = [("^gating", "W_g"), ("^skip", "W_x"), ("^map", "psi"), (r"\.0\.", ".0.conv.")]
    missing, unexpected = reference.load_state_dict(renamed(gate, *names), strict=False)
    assert not unexpected and all(key.endswith("conv.bias") for key in missing)
    skip, gating = torch.randn(2, 8, 5, 7).double(), torch.randn(2, 6, 5, 7).double()
    torch.testing.assert_close(gate(skip, gating)[0], reference(gating, skip))


@torch.no_grad()
def test_residual_unit_equals_monais():
    unit, reference = prepared(ResidualUnit(6, 6)), ResBlock(2, 6, norm="batch").double().eval()
    unit.residual[5].bias.zero_()  # theirs has none
    places = {"0": "norm1", "2": "conv1.conv", "3": "norm2", "5": "conv2.conv"}
    state = renamed(unit.residual, (r"^\d", lambda match: places[match[0]]))
    del state["conv2.conv.bias"]
    reference.load_state_dict(state)
    features = torch.randn(2, 6, 8, 10).double()
    torch.testing.assert_close(unit(features), reference(features))


@torch.no_grad()
def test_transformer_layer_equals_torchs():
    config = small_config("transunet")
    widths = config.hidden_size, config.num_attention_heads, config.intermediate_size
    layer = TransUNetLayer(config).double().eval()
    reference = nn.TransformerEncoderLayer(*widths, 0.0, "gelu", 1e-6, True, True).double().eval()
    for tensor in layer.parameters():
        tensor.normal_(std=0.3)
    names = [
        (r"^query_key_value\.", "self_attn.in_proj_"), (r"^projection", "self_attn.out_proj"),
        (r"^attention_norm", "norm1"), (r"^perceptron\.0", "norm2"),
        (r"^perceptron\.1", "linear1"), (r"^perceptron\.3", "linear2"),
    ]  # fmt: skip
    reference.load_state_dict(renamed(layer, *names))
    tokens = torch.randn(2, 7, config.hidden_size).double()
    torch.testing.assert_close(layer(tokens)[0], reference(tokens))


@pytest.mark.parametrize("variant", ["attention_unet", "transunet"])
@torch.no_grad()
def test_without_its_addition_a_variant_is_the_unet(variant):
    model, unet = prepared(small_model(variant)), prepared(small_model("unet"))
    if variant == "transunet":
        model.decoder.bottleneck.forward = lambda deepest: (deepest, ())
    else:
        for block in model.decoder.blocks:
            block.gate.map[1].weight.zero_()
            block.gate.map[1].bias.fill_(100.0)  # wide open
    missing, unexpected = unet.load_state_dict(model.state_dict(), strict=False)
    assert not missing and all(".gate." in key or ".bottleneck." in key for key in unexpected)
    pixels = torch.rand(2, 3, 40, 56, dtype=torch.float64)
    torch.testing.assert_close(model(pixels).logits, unet(pixels).logits)
