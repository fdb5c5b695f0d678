"""The U-Net of 2015, and what it hands on to every variant: output, loss, labels, initialisation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.layers import center_crop, concat_skip
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation, segmentation_loss
from tests.variants import shared_model, small_config, small_model


def test_the_network_of_2015():
    with torch.device("meta"):
        model = UNetForSemanticSegmentation(UNetConfig(padding="valid", batch_norm=False))
        assert model(torch.zeros(1, 3, 572, 572)).logits.shape == (1, 1, 388, 388)
    assert sum(parameter.numel() for parameter in model.parameters()) == 31_031_745


def test_plain_path_has_a_map_for_each_level():
    output = shared_model("unet", "plain")(torch.rand(1, 3, 60, 33), output_hidden_states=True)
    shapes = [tuple(level.shape) for level in output.hidden_states]
    assert shapes == [(1, 4, 64, 40), (1, 8, 32, 20), (1, 16, 16, 10), (1, 32, 8, 5)]
    assert output.logits.shape == (1, 1, 60, 33)


def test_hidden_states_leave_out_missing_levels():
    model = small_model(encoder="convnext_atto", detail_channels=0).eval()
    shapes = [level.shape[1:] for level in model(torch.rand(1, 3, 64, 64), output_hidden_states=True).hidden_states]
    assert shapes == [(40, 16, 16), (80, 8, 8), (160, 4, 4), (320, 2, 2)]


def test_output_is_a_model_output():
    output = shared_model("unet", "plain")(torch.rand(1, 3, 32, 32))
    assert isinstance(output, SemanticSegmenterOutput)
    assert output["logits"] is output.logits
    assert output.loss is None
    assert output.hidden_states is None


def test_tuple_instead_of_a_model_output():
    model, pixels = shared_model("unet", "plain"), torch.rand(1, 3, 32, 32)
    labels = torch.ones(1, 32, 32)
    full = model(pixels, labels=labels)
    (logits,) = model(pixels, return_dict=False)
    assert torch.equal(logits, full.logits)
    loss, logits, hidden = model(pixels, labels=labels, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, full.loss)
    assert torch.equal(logits, full.logits)
    assert len(hidden) == 4


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32)])
def test_wrong_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"pixel_values must be B x 3 x H x W \(num_channels\), got"):
        shared_model("unet", "plain")(torch.rand(shape))


def test_reduction_before_the_head():
    model, plain_model = small_model(reduction_channels=6).eval(), small_model()
    added = 4 * 6 * 9 + 2 * 6 + (6 - 4)  # convolution without bias, batch norm, wider classifier
    assert model.num_parameters() == plain_model.num_parameters() + added
    assert model(torch.rand(1, 3, 40, 40)).logits.shape == (1, 1, 40, 40)


def test_skip_comes_first_and_is_cropped_to_its_middle():
    skip, features = torch.arange(36.0).reshape(1, 1, 6, 6), torch.zeros(1, 2, 2, 2)
    joined = concat_skip(skip, features)
    assert joined[0, 0].tolist() == [[14.0, 15.0], [20.0, 21.0]]
    assert torch.equal(joined[:, 1:], features)
    assert concat_skip(None, features) is features


# loss


def test_binary_loss_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3)], [-math.log(3), 9.0], [1.0, 0.0]]]])
    labels = torch.tensor([[[1, 1], [1, 255], [-100, 0]]])
    expected = (math.log(2) + math.log(4 / 3) + math.log(4) + math.log(2)) / 4
    torch.testing.assert_close(segmentation_loss(logits, labels), torch.tensor(expected))


def test_cross_entropy_by_hand():
    pixel = torch.tensor([0.0, 0.0, math.log(2)])  # probabilities 1/4, 1/4, 1/2
    logits = pixel[None, :, None, None].expand(1, 3, 2, 2)
    labels = torch.tensor([[[2, 0], [255, -100]]])
    expected = (math.log(2) + math.log(4)) / 2
    torch.testing.assert_close(segmentation_loss(logits, labels), torch.tensor(expected))


def test_loss_is_a_mean_over_the_pixels_of_the_batch():
    logits = torch.tensor([[[[0.0, 0.0]]], [[[math.log(3), 0.0]]]])
    labels = torch.tensor([[[1, 0]], [[1, 255]]])
    expected = (2 * math.log(2) + math.log(4 / 3)) / 3
    torch.testing.assert_close(segmentation_loss(logits, labels), torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_is_computed_in_float32(dtype):
    logits, labels = torch.randn(1, 1, 8, 8).to(dtype), torch.randint(0, 2, (1, 8, 8))
    assert segmentation_loss(logits, labels).dtype == torch.float32
    assert torch.equal(segmentation_loss(logits, labels), segmentation_loss(logits.float(), labels))


@pytest.mark.parametrize("num_labels", [2, 3])
def test_forward_returns_that_loss(num_labels):
    model = small_model(num_labels=num_labels).eval()
    pixels, labels = torch.rand(2, 3, 24, 40), torch.randint(0, num_labels, (2, 24, 40))
    output = model(pixels, labels=labels)
    if num_labels == 2:
        expected = F.binary_cross_entropy_with_logits(output.logits[:, 0], labels.float())
    else:
        expected = F.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_ignored_pixels_do_not_count(num_labels):
    model = small_model(num_labels=num_labels).eval()
    pixels, labels = torch.rand(1, 3, 24, 24), torch.randint(0, num_labels, (1, 24, 24))
    labels[:, :10], labels[:, 10:12] = 255, -100
    logits = model(pixels).logits
    torch.testing.assert_close(
        model(pixels, labels=labels).loss, segmentation_loss(logits[..., 12:, :], labels[:, 12:])
    )


@pytest.mark.parametrize(
    "form",
    [
        lambda labels: labels[:, None],
        lambda labels: labels.float(),
        lambda labels: labels[:, None].double(),
        lambda labels: labels.to(torch.uint8),
        lambda labels: labels.to(torch.int32),
    ],
)
def test_forms_of_labels(form):
    model, pixels = shared_model("unet", "plain"), torch.rand(2, 3, 16, 16)
    labels = torch.randint(0, 2, (2, 16, 16))
    labels[0, :4] = 255
    assert torch.equal(model(pixels, labels=form(labels)).loss, model(pixels, labels=labels).loss)


@pytest.mark.parametrize("ignored", [255, -100])
@pytest.mark.parametrize("num_labels", [2, 3])
def test_nothing_but_ignored_pixels_costs_nothing(num_labels, ignored):
    model = small_model(num_labels=num_labels).train()
    loss = model(torch.rand(2, 3, 16, 16), labels=torch.full((2, 16, 16), ignored)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((1, 16, 16), 2), r"labels must lie in 0..1, .* found \[2\]"),
        (torch.full((1, 16, 16), -1), r"found \[-1\]"),
        (torch.full((1, 16, 16), 156, dtype=torch.uint8), r"found \[156\]"),
        (torch.full((1, 16, 16), 254.0), r"found \[254\]"),
        (torch.full((1, 16, 16), 0.5), "labels must be whole numbers"),
        (torch.full((1, 16, 16), math.nan), "labels must be whole numbers"),
        (torch.zeros(1, 3, 16, 16), r"labels must be B x H x W or B x 1 x H x W with B = 1, got \(1, 3, 16, 16\)"),
        (torch.zeros(2, 16, 16), "with B = 1"),
        (torch.zeros(16, 16), "with B = 1"),
        (torch.zeros(1, 16, 15), r"labels of \(16, 15\) pixels do not fit logits of \(16, 16\)"),
        (torch.zeros(1, 32, 32), r"labels of \(32, 32\) pixels do not fit"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        shared_model("unet", "plain")(torch.rand(1, 3, 16, 16), labels=labels)


# unpadded convolutions, figure 1 of the 2015 paper


def valid_model():
    return small_model(padding="valid", depth=1, base_channels=2).eval()


def test_labels_of_the_inputs_size_are_cropped_to_the_middle():
    model, pixels = valid_model(), torch.rand(2, 3, 28, 36)
    labels = torch.randint(0, 2, (2, 28, 36))
    output = model(pixels, labels=labels)
    assert output.logits.shape == (2, 1, 12, 20)
    middle = labels[:, 8:20, 8:28]
    expected = F.binary_cross_entropy_with_logits(output.logits[:, 0], middle.float())
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(model(pixels, labels=middle).loss, output.loss)


def test_wrong_values_in_the_border_are_cut_off():
    model, labels = valid_model(), torch.full((1, 28, 28), 7)
    labels[:, 8:20, 8:20] = 1
    assert model(torch.rand(1, 3, 28, 28), labels=labels).loss > 0


@pytest.mark.parametrize("size", [(28, 27), (13, 12), (20, 20)])
def test_labels_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match="do not fit logits of"):
        valid_model()(torch.rand(1, 3, 28, 28), labels=torch.zeros(1, *size))


@pytest.mark.parametrize(("size", "nearest"), [((28, 29), 28), ((18, 28), 20), ((28, 3), 20)])
def test_a_size_that_can_not_be_mapped_is_refused(size, nearest):
    with pytest.raises(ValueError, match=f"the nearest that fits is {nearest}"):
        valid_model()(torch.rand(1, 3, *size))


def test_each_logit_sees_what_lies_around_it():
    model, pixels = valid_model(), torch.rand(1, 3, 32, 32)
    shifted = model(pixels[..., 2:30, 2:30]).logits
    torch.testing.assert_close(center_crop(model(pixels).logits, (12, 12)), shifted)


# initialisation


@pytest.mark.parametrize(
    ("encoder", "fields"),
    [
        ("plain", {"base_channels": 16}),
        ("plain", {"base_channels": 16, "batch_norm": False}),
        ("plain", {"base_channels": 16, "upsample": "bilinear", "reduction_channels": 32}),
        ("convnext_atto", {"decoder_channels": [64, 32, 32, 16, 16], "detail_channels": 16}),
    ],
)
def test_our_convolutions_have_the_spread_of_he(encoder, fields):
    model = small_model(encoder=encoder, **fields)
    convolutions = [
        part
        for name, part in model.named_modules()
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)) and not name.startswith("encoder.backbone.")
    ]
    assert len(convolutions) > 10
    for part in convolutions:
        if isinstance(part, nn.ConvTranspose2d):
            expected = (1 / part.in_channels) ** 0.5
        else:
            expected = (2 / (part.in_channels * part.kernel_size[0] ** 2)) ** 0.5
        tolerance = 4 / math.sqrt(2 * part.weight.numel())  # 4 standard errors of a standard deviation
        assert part.weight.std().item() == pytest.approx(expected, rel=tolerance)
        assert part.bias is None or not part.bias.any()


def test_batch_norm_starts_as_the_identity():
    norms = [part for part in small_model().modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 14  # two for each of 4 stages and 3 blocks
    for norm in norms:
        assert (norm.weight == 1).all() and not norm.bias.any()
        assert (norm.running_var == 1).all() and not norm.running_mean.any()


# the background's channel


@pytest.mark.parametrize("variant", ["unet", "unetplusplus"])
def test_a_channel_for_the_background_changes_neither_weights_nor_loss(variant, tmp_path):
    fields = {"deep_supervision": True} if variant == "unetplusplus" else {}
    one_channel = small_model(variant, **fields)
    one_channel.save_pretrained(tmp_path)
    two_channels, info = type(one_channel).from_pretrained(tmp_path, background_channel=True, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (two_channels.config.num_logits, one_channel.config.num_logits) == (2, 1)
    pixels, labels = torch.rand(2, 3, 33, 47), torch.randint(0, 2, (2, 33, 47))
    expected, output = one_channel.train()(pixels, labels=labels), two_channels.train()(pixels, labels=labels)
    assert torch.equal(output.loss, expected.loss)
    assert len(output.auxiliary_logits or ()) == len(expected.auxiliary_logits or ())
    for one_logit, two_logits in zip(
        (expected.logits, *(expected.auxiliary_logits or ())),
        (output.logits, *(output.auxiliary_logits or ())),
        strict=True,
    ):
        assert torch.equal(two_logits, torch.cat([torch.zeros_like(one_logit), one_logit], dim=1))
    assert torch.equal(output.logits.argmax(dim=1), (expected.logits[:, 0] > 0).long())
    torch.testing.assert_close(F.cross_entropy(output.logits, labels), segmentation_loss(expected.logits, labels))


def test_more_labels_leave_no_channel_to_add():
    assert small_config(num_labels=3, background_channel=True).num_logits == 3
