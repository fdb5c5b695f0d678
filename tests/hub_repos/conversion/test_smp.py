"""smp's Unet and UnetPlusPlus become ours with equal logits; what ours can't compute is refused by name."""

import json

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn

from hub_unets.hub_repos import convert
from hub_unets.hub_repos.conversion.smp_checkpoint import timm_name
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import load_model

WIDTHS = {"decoder_channels": [16, 24, 8, 12, 8], "encoder_weights": None}


def network(architecture="Unet", encoder="resnet18", **options):
    """In evaluation mode, with batch norms that are no identity."""
    torch.manual_seed(0)
    model = getattr(smp, architecture)(encoder, **{**WIDTHS, **options})
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def run(source, out, *options, size=64):
    convert.main([str(source), str(out), "--size", str(size), *options])


@torch.inference_mode()
def check_equal(reference, folder):
    model, processor = load_model(str(folder))
    pixels = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(model.double()(pixels).logits, reference.double()(pixels))
    return model, processor


@pytest.mark.parametrize("architecture", ["Unet", "UnetPlusPlus"])
@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("resnet18", {}),
        ("tu-mobilenetv2_100", {"classes": 3, "decoder_use_norm": False}),
        ("tu-convnext_atto", {"classes": 2, "drop_path_rate": 0.1}),
        pytest.param("resnet50", {"activation": "sigmoid"}, marks=pytest.mark.long),
        pytest.param("resnext50_32x4d", {}, marks=pytest.mark.long),
        pytest.param("timm-mobilenetv3_small_075", {}, marks=pytest.mark.long),
        pytest.param("timm-regnetx_002", {}, marks=pytest.mark.long),
        pytest.param("timm-res2net50_26w_4s", {}, marks=pytest.mark.long),
        pytest.param("tu-pvt_v2_b0", {}, marks=pytest.mark.long),
        pytest.param("tu-densenet121", {}, marks=pytest.mark.long),
        pytest.param("tu-tf_efficientnet_lite0", {"decoder_channels": [256, 128, 64, 32, 16]}, marks=pytest.mark.long),
    ],
)
def test_logits_are_equal(tmp_path, architecture, encoder, options):
    reference = network(architecture, encoder, **options)
    reference.save_pretrained(tmp_path / "smp")
    run(tmp_path / "smp", tmp_path / "ours")
    if reference.segmentation_head[2].activation.__class__ is not nn.Identity:
        reference.segmentation_head[2] = nn.Identity()  # logits, not what follows them
    model, _ = check_equal(reference, tmp_path / "ours")
    assert model.config.model_type == architecture.lower()
    assert model.config.num_labels == max(2, options.get("classes", 1))
    assert model.config.head_channels == options.get("classes", 1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_state_dict_needs_its_encoders_name(tmp_path, capsys, suffix):
    reference, path = network(), tmp_path / f"best{suffix}"
    state = {f"model.{name}": tensor for name, tensor in reference.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 7, "state_dict": state}, path)
    with pytest.raises(UserError, match=r"does not tell its encoder: give smp's name of it, --encoder resnet34"):
        run(path, tmp_path / "ours")
    run(path, tmp_path / "ours", "--encoder", "resnet18", "--labels", "nothing", "polyp")
    model, _ = check_equal(reference, tmp_path / "ours")
    assert model.config.id2label == {0: "nothing", 1: "polyp"}
    output = capsys.readouterr().out
    assert "unet on resnet18, 182 tensors, labels nothing, polyp" in output and "smp's defaults" in output


def test_pixels_are_normalised_as_the_encoder_expects(tmp_path):
    network(encoder="tu-tf_efficientnet_lite0").save_pretrained(tmp_path / "smp")
    run(tmp_path / "smp", tmp_path / "ours", size=96)
    _, processor = load_model(str(tmp_path / "ours"))
    assert list(processor.image_mean) == list(processor.image_std) == [0.5, 0.5, 0.5]
    assert tuple(processor.size.values()) == (96, 96)
    given = ["--image_mean", "0", "0", "0", "--image_std", "1", "1", "1"]
    run(tmp_path / "smp", tmp_path / "zeros", *given)
    _, processor = load_model(str(tmp_path / "zeros"))
    assert (list(processor.image_mean), list(processor.image_std)) == ([0, 0, 0], [1, 1, 1])


def test_channels_that_smp_does_not_have_can_learn(tmp_path):
    """Its last nodes are narrower or wider than a level's others, ours are not."""
    network("UnetPlusPlus").save_pretrained(tmp_path / "smp")
    run(tmp_path / "smp", tmp_path / "ours")
    model, _ = load_model(str(tmp_path / "ours"))
    assert model.config.decoder_channels == [16, 128, 64, 64, 8]  # the skips' where they are wider
    model.train()(torch.rand(2, 3, 64, 64)).logits.square().mean().backward()
    assert all(weight.grad.any() for name, weight in model.named_parameters() if name.endswith("conv.1.0.weight"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smp")
    network().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_depth": 4}, "encoder_depth is 4, 5 is converted: our decoders start at stride 32"),
        (
            {"decoder_attention_type": "scse"},
            "decoder_attention_type is 'scse', None is converted: our decod",
        ),
        ({"decoder_interpolation": "bilinear"}, "decoder_interpolation is 'bilinear', nearest is converted"),
        (
            {"decoder_use_norm": "layernorm"},
            "decoder_use_norm is 'layernorm', True or batchnorm or False",
        ),
        ({"activation": "tanh"}, "activation is 'tanh', None or identity or sigmoid is converted"),
        ({"in_channels": 1}, "in_channels is 1, 3 is converted: images are read as RGB"),
        ({"act_layer": "gelu"}, "the option act_layer='gelu' of its encoder is not known"),
        ({"encoder_name": "vgg11"}, r"encoder 'vgg11' can't be converted: resnet\*, resnext\* and tu-\* are"),
        (
            {"encoder_name": "resnet34"},
            "encoder.layer1.2.conv1.weight is missing .*is its encoder an",
        ),
        (
            {"encoder_name": "resnet50"},
            "encoder.layer1.0.conv1.weight is .* network takes .*another",
        ),
        ({"encoder_name": "tu-resnet1"}, "backbone='resnet1' is not a timm model; near it are: "),
        ({"_model_class": "DeepLabV3Plus"}, "holds smp's DeepLabV3Plus: Unet and UnetPlusPlus are converted"),
        ({"_model_class": None}, "names no _model_class, as smp's save_pretrained does"),
    ],
)
def test_what_ours_can_not_compute_is_refused(saved, tmp_path, options, message):
    folder = tmp_path / "smp"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(saved / "model.safetensors")
    fields = json.loads((saved / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_another_architecture_in_a_file(tmp_path):
    save_file(smp.FPN("resnet18", encoder_weights=None).state_dict(), tmp_path / "fpn.safetensors")
    with pytest.raises(UserError, match="holds smp's network of another architecture: Unet and UnetPlusPlus are"):
        run(tmp_path / "fpn.safetensors", tmp_path / "ours", "--encoder", "resnet18")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100"], "--size must be a multiple of 32, as smp's networks take it, got 100"),
        (["--encoder", "resnet34"], "--encoder is resnet34, config.json of .* says resnet18: leave --encoder out"),
        (["--labels", "a", "b", "c"], "--labels must be 2 names, the background's first, got a, b, c"),
        (["--labels", "a", "a"], "id2label must give each label a name of its own"),
    ],
)
def test_options_that_do_not_fit(saved, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(saved, tmp_path / "ours", *options)


def test_missing_files(saved, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*gone: give a folder of save_pretrained, .*hf download ID"):
        run(tmp_path / "gone", tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no config.json"):
        run(tmp_path / "empty", tmp_path / "ours")
    (tmp_path / "empty" / "config.json").write_text("{}}")
    with pytest.raises(UserError, match="config.json is not JSON"):
        run(tmp_path / "empty", tmp_path / "ours")
    (tmp_path / "empty" / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(UserError, match="empty has no model.safetensors"):
        run(tmp_path / "empty", tmp_path / "ours")
    save_file({"weight": torch.zeros(2)}, tmp_path / "empty" / "model.safetensors")
    with pytest.raises(UserError, match="holds 0 tensors called segmentation_head.0.weight"):
        run(tmp_path / "empty", tmp_path / "ours")


def test_a_folder_in_use_is_kept(saved, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not an earlier conversion: choose another folder"):
        run(saved, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_every_encoder_of_smp_is_converted_or_refused():
    converted = []
    for name in smp.encoders.get_encoder_names():
        try:
            converted.append((name, timm_name(name)))
        except UserError:
            continue
    assert {("resnet34", "resnet34"), ("resnext101_32x8d", "resnext101_32x8d")} <= set(converted)
    assert not any(name.startswith(("se_", "dpn", "vgg", "mit", "efficientnet", "mobilenet")) for name, _ in converted)
