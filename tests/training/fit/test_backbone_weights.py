"""Pretrained weights arrive whole in the encoder, or an error says what else can be given."""

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.errors import UserError
from hub_unets.training.fit.backbone_weights import load_backbone_weights

BACKBONE = "test_resnet"  # 0.4 million weights
WIDTHS = [8, 8, 4, 4, 4]


def a_model(backbone=BACKBONE, num_channels=3):
    return UNetForSemanticSegmentation(
        UNetConfig(backbone=backbone, decoder_channels=WIDTHS, num_channels=num_channels)
    )


def write_weights(path, backbone=BACKBONE, without=(), **options):
    """A file with timm's key names, whose batch-norm statistics are not those of a fresh model."""
    torch.manual_seed(7)
    tensors = timm.create_model(backbone, **options).state_dict()
    for key, tensor in tensors.items():
        if key.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items() if not key.endswith(tuple(without))}
    if Path(path).suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return tensors


def encoder_tensors(model):
    return {key: tensor.clone() for key, tensor in model.encoder.backbone.state_dict().items()}


@pytest.mark.parametrize(
    ("backbone", "suffix"),
    [(BACKBONE, ".safetensors"), (BACKBONE, ".pth"), ("test_efficientnet", ".safetensors")],
)
def test_a_local_file_arrives_whole(tmp_path, backbone, suffix):
    path = tmp_path / f"weights{suffix}"
    written = write_weights(path, backbone)
    model = a_model(backbone)
    before = encoder_tensors(model)
    load_backbone_weights(model, str(path))
    loaded = encoder_tensors(model)
    assert len(loaded) > 30
    for key, tensor in loaded.items():
        assert torch.equal(tensor, written[key]), key
        assert key.endswith("num_batches_tracked") or not torch.equal(tensor, before[key]) or tensor.dim() == 1
    first = next(iter(loaded))
    assert loaded[first].shape[1] == 3 and torch.equal(loaded[first], written[first])


@pytest.mark.parametrize("backbone", ["test_vit", "test_vit3", "test_vit4"])
@torch.no_grad()
def test_a_plain_transformer_takes_the_file_of_timms_own_model(tmp_path, backbone):
    torch.manual_seed(7)
    reference = timm.create_model(backbone, dynamic_img_size=True).eval()  # with the head and the last norm
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    model = a_model(backbone).eval()
    load_backbone_weights(model, str(tmp_path / "w.safetensors"))
    pixels = torch.rand(1, 3, 64, 96)
    depth = len(reference.blocks)
    expected = reference.forward_intermediates(pixels, indices=[depth // 2 - 1, depth - 1], intermediates_only=True)
    for level, reference_level in zip(model.encoder.backbone(pixels)[1::2], expected, strict=True):
        assert torch.equal(level, reference_level)


def test_only_the_backbone_changes(tmp_path):
    write_weights(tmp_path / "w.safetensors")
    model = a_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    load_backbone_weights(model, str(tmp_path / "w.safetensors"))
    assert torch.equal(torch.get_rng_state(), state)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and all(key.startswith("encoder.backbone.") for key in changed)


def test_a_folder_holds_the_file_under_the_backbones_name(tmp_path):
    written = write_weights(tmp_path / "test_resnet.safetensors")
    write_weights(tmp_path / "test_efficientnet.safetensors", "test_efficientnet")
    model = a_model()
    load_backbone_weights(model, str(tmp_path))
    assert all(torch.equal(tensor, written[key]) for key, tensor in encoder_tensors(model).items())
    with pytest.raises(UserError, match=r"there is no file .*/test_byobnet.safetensors; give a local file"):
        load_backbone_weights(a_model("test_byobnet"), str(tmp_path))


def test_another_number_of_classes_does_not_matter(tmp_path):
    written = write_weights(tmp_path / "w.safetensors", num_classes=1001)
    model = a_model()
    load_backbone_weights(model, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(tensor, written[key]) for key, tensor in encoder_tensors(model).items())


def test_none_leaves_the_random_weights():
    model = a_model()
    before = encoder_tensors(model)
    load_backbone_weights(model, "none")
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder_tensors(model).items())


def test_a_missing_file(tmp_path):
    cures = r"--backbone_weights FILE.safetensors\), or train from scratch \(--backbone_weights none\)"
    with pytest.raises(UserError, match=rf"there is no file .*gone.safetensors; give a local file.*{cures}"):
        load_backbone_weights(a_model(), str(tmp_path / "gone.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_text_file(tmp_path, suffix):
    path = tmp_path / f"notes{suffix}"
    path.write_text("no weights in here")
    with pytest.raises(UserError, match=rf"notes{suffix} is (damaged, or )?no file of tensors"):
        load_backbone_weights(a_model(), str(path))


@pytest.mark.parametrize("other", ["test_efficientnet", "test_byobnet"])
def test_the_file_of_another_model(tmp_path, other):
    path = tmp_path / "w.safetensors"
    write_weights(path, other)
    model = a_model()
    before = encoder_tensors(model)
    with pytest.raises(ValueError, match="backbone_weights: .*w.safetensors .*test_resnet"):
        load_backbone_weights(model, str(path))
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder_tensors(model).items())


@pytest.mark.parametrize("without", ["layer4.0.conv2.weight", "running_mean"])
def test_a_file_that_lacks_weights(tmp_path, without):
    path = tmp_path / "w.safetensors"
    write_weights(path, without=[without])
    with pytest.raises(UserError, match=rf"lacks \d+ tensors of test_resnet, .*{without}.*95% and all .* are needed"):
        load_backbone_weights(a_model(), str(path))


def test_less_than_a_twentieth_may_lack_and_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    written = write_weights(path, without=["layer2.0.conv1.weight"])
    model = a_model()
    before = encoder_tensors(model)
    summary = load_backbone_weights(model, str(path))
    assert re.search(r": 74 of 75 tensors of test_resnet, 9[5-9].\d% of its values", summary)
    assert "matched by name; the others are random: layer2.0.conv1.weight." in summary
    after = encoder_tensors(model)
    assert all(torch.equal(after[key], written[key]) for key in before if key != "layer2.0.conv1.weight")


def test_no_network_is_an_error_and_never_random_weights(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    model = a_model("test_resnet.r160_in1k")
    before = encoder_tensors(model)
    with pytest.raises(OSError, match=r"test_resnet.r160_in1k could not be downloaded \(.*give a local file.*none\)"):
        load_backbone_weights(model, "timm")
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder_tensors(model).items())


def test_a_backbone_that_timm_never_trained_is_an_error():
    with pytest.raises(
        OSError, match="weights of mobilenetv2_035 could not be .*No pretrained weights exist.*; give a local file"
    ):
        load_backbone_weights(a_model("mobilenetv2_035"), "timm")


def test_the_real_file():
    """The ImageNet weights of mobilenetv2_100, where they are at hand."""
    default = Path(__file__).parents[4] / "shared" / "weights" / "mobilenetv2_100.safetensors"
    path = Path(os.environ.get("WEIGHTS", default))
    if not path.is_file():
        pytest.skip(f"{path.name} not found; set WEIGHTS to it")
    model = a_model("mobilenetv2_100")
    load_backbone_weights(model, str(path))
    written, loaded = load_file(path), encoder_tensors(model)
    assert len(loaded) > 250
    assert all(torch.equal(tensor, written[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize("num_channels", [1, 5])
def test_the_stem_of_other_channels_is_adapted_as_timm_does(tmp_path, num_channels):
    written = write_weights(tmp_path / "weights.safetensors")
    model = a_model(num_channels=num_channels)
    load_backbone_weights(model, str(tmp_path / "weights.safetensors"))
    loaded, first = encoder_tensors(model), next(iter(written))
    red_green_blue = written[first]
    if num_channels == 1:
        expected = red_green_blue.sum(dim=1, keepdim=True)
    else:
        expected = red_green_blue[:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(loaded[first], expected)
    assert all(torch.equal(loaded[key], written[key]) for key in loaded if key != first)
