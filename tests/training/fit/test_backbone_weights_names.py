"""A backbone's weights under other names: wrappers' prefixes, torchvision's networks, plain sequences."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.errors import UserError
from hub_unets.training.fit.backbone_weights import load_backbone_weights

RESNET = "test_resnet"


def prepared(network):
    """In evaluation mode, with batch norms and scales that are no identity."""
    torch.manual_seed(5)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var", "layer_scale")):
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def a_model(backbone):
    return UNetForSemanticSegmentation(UNetConfig(backbone=backbone))


def load(path, state, backbone=RESNET):
    """The state dict of a backbone that read this state from a file, and the line that said so."""
    if path.suffix == ".safetensors":
        save_file(dict(state), path)
    else:
        torch.save(state, path)
    model = a_model(backbone)
    summary = load_backbone_weights(model, str(path))
    return model.encoder.backbone.state_dict(), summary


def expect_values(loaded, state):
    for key, tensor in loaded.items():
        assert key.endswith("num_batches_tracked") or torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("prefix", ["module.", "model.", "encoder.", "teacher.backbone.", "state_dict.a.b.c."])
def test_a_prefix_is_found_and_said(tmp_path, prefix):
    state = prepared(timm.create_model(RESNET)).state_dict()
    wrapped = {f"{prefix}{key}": tensor for key, tensor in state.items()} | {"head.weight": torch.zeros(3, 3)}
    loaded, summary = load(tmp_path / "w.safetensors", wrapped)
    expect_values(loaded, state)
    assert f"75 of 75 tensors of test_resnet, 100.0% of its values, from {tmp_path}" in summary
    assert f"behind {prefix!r}, matched by name." in summary


def test_a_training_checkpoint_holds_more_than_weights(tmp_path):
    state = prepared(timm.create_model(RESNET)).state_dict()
    checkpoint = {"epoch": 3, "optimizer": {"state": {}}, "model": {f"module.{key}": state[key] for key in state}}
    loaded, summary = load(tmp_path / "w.pth", checkpoint)
    expect_values(loaded, state)
    assert "behind 'model.module.'" in summary


def test_of_student_and_teacher_the_teacher_is_taken(tmp_path):
    student, teacher = ({key: tensor + shift for key, tensor in timm.create_model(RESNET).state_dict().items()}
                        for shift in (0, 1))  # fmt: skip
    both = {
        "student": {f"module.backbone.{key}": tensor for key, tensor in student.items()},
        "teacher": {f"backbone.{key}": tensor for key, tensor in teacher.items()},
    }
    loaded, summary = load(tmp_path / "dino.pth", both)
    expect_values(loaded, teacher)
    assert "behind 'teacher.backbone.'" in summary


def test_two_networks_are_refused_by_name(tmp_path):
    state = timm.create_model(RESNET).state_dict()
    both = {f"{name}.{key}": tensor.clone() for name in ("left", "right") for key, tensor in state.items()}
    with pytest.raises(UserError, match=r"holds 2 networks that fit, under 'left.' and 'right.': save the one"):
        load(tmp_path / "w.safetensors", both)


def test_a_sequence_of_a_networks_children(tmp_path):
    """As lightly keeps a ResNet: nn.Sequential(*list(resnet.children())[:-1])."""
    network = prepared(timm.create_model(RESNET))
    sequence = nn.Sequential(*list(network.children())[:-1])
    state = {f"backbone.{key}": tensor for key, tensor in sequence.state_dict().items()}
    loaded, summary = load(tmp_path / "w.safetensors", state)
    expect_values(loaded, network.state_dict())
    assert "behind 'backbone.', matched by order and shape; what shapes do not tell" in summary


def check_against_torchvision(tmp_path, network, backbone):
    """A file of torchvision's network gives the backbone maps that torchvision's network computes."""
    network = prepared(torchvision.models.get_model(network, weights=None))
    state, summary = load(tmp_path / "w.safetensors", network.state_dict(), backbone)
    pyramid = timm.create_model(backbone, features_only=True).eval()
    pyramid.load_state_dict(state)
    pixels, outputs = torch.rand(1, 3, 64, 64), []
    for module in network.modules():
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    with torch.inference_mode():
        network(pixels)
        for feature_map in pyramid(pixels):
            assert any(torch.equal(feature_map, output) for output in outputs if output.shape == feature_map.shape)
    return summary


@pytest.mark.parametrize(
    ("network", "backbone"),
    [
        ("resnet18", "resnet18"),
        ("mobilenet_v2", "mobilenetv2_100"),
        pytest.param("efficientnet_b0", "efficientnet_b0", marks=pytest.mark.long),
        pytest.param("mnasnet1_0", "mnasnet_100", marks=pytest.mark.long),
        pytest.param("regnet_y_400mf", "regnety_004", marks=pytest.mark.long),
        pytest.param("convnext_tiny", "convnext_tiny", marks=pytest.mark.long),
    ],
)
def test_torchvisions_networks_give_equal_maps(tmp_path, network, backbone):
    summary = check_against_torchvision(tmp_path, network, backbone)
    assert "matched by name." in summary or f"its maps are those of torchvision's {network}." in summary


def test_values_that_fit_but_give_other_maps_are_refused(tmp_path):
    """timm's batch norms have another epsilon there."""
    network = prepared(torchvision.models.get_model("mobilenet_v3_small", weights=None))
    with pytest.raises(UserError, match="torchvision's mobilenet_v3_small, which computes other maps than timm's mob"):
        load(tmp_path / "w.safetensors", network.state_dict(), "mobilenetv3_small_100")


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UserError, match="w.pth is no file of tensors alone, and code is not run.*save its state_dict"):
        load_backbone_weights(a_model(RESNET), str(path))


def test_a_file_without_tensors(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="w.pth holds no tensor"):
        load_backbone_weights(a_model(RESNET), str(path))
