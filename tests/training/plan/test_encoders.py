"""Which encoder a plan takes: by the files that are there, and the device."""

import pytest

from hub_unets.training.errors import UserError
from hub_unets.training.plan import encoders
from hub_unets.training.plan.encoders import choose_encoder


@pytest.fixture
def folder(tmp_path):
    for name, size in (("resnet50", 3), ("mobilenetv2_100", 1), ("tf_efficientnet_lite2", 2), ("notes", 9)):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(size))
    return tmp_path


@pytest.mark.parametrize(("device", "name"), [("cpu", "mobilenetv2_100"), ("cuda", "resnet50")])
def test_the_best_of_a_folder_for_the_device(folder, device, name):
    encoder = choose_encoder(str(folder), True, device)
    assert (encoder.backbone, encoder.weights, encoder.pretrained) == (name, str(folder), True)
    assert encoder.image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("device", "name"), [("cpu", "regnety_002"), ("cuda", "regnety_016")])
def test_of_others_the_smallest_or_the_largest(tmp_path, device, name):
    for size, stem in enumerate(("regnety_002", "regnety_008", "regnety_016")):
        (tmp_path / f"{stem}.safetensors").write_bytes(bytes(size))
    assert choose_encoder(str(tmp_path), True, device).backbone == name


def test_a_file_says_by_its_name_what_it_is_of(folder):
    assert choose_encoder(str(folder / "resnet50.safetensors"), True, "cpu").backbone == "resnet50"
    with pytest.raises(UserError, match="no file name in .*notes.safetensors is that of a network of timm"):
        choose_encoder(str(folder / "notes.safetensors"), True, "cpu")
    assert choose_encoder(str(folder / "notes.safetensors"), True, "cpu", "resnet18").backbone == "resnet18"
    with pytest.raises(UserError, match="no file or folder .*nowhere"):
        choose_encoder(str(folder / "nowhere"), True, "cpu")


def test_from_scratch():
    encoder = choose_encoder("none", True, "cpu")
    assert (encoder.backbone, encoder.pretrained) == (None, False)
    assert choose_encoder("none", True, "cpu", "resnet18").backbone == "resnet18"


def test_the_hub_where_it_answers_and_the_plain_path_where_it_does_not(monkeypatch):
    encoder = choose_encoder("timm", False, "cpu")  # the tests are offline
    assert (encoder.backbone, encoder.weights) == (None, "none") and "the Hub is not reachable" in encoder.reason
    assert choose_encoder("timm", True, "cpu").weights == "timm"
    monkeypatch.setattr(encoders.HfApi, "model_info", lambda *_, **__: None)
    assert choose_encoder("timm", False, "cpu").backbone == "mobilenetv2_100"
    encoder = choose_encoder("timm", False, "cuda")
    assert encoder.backbone == "convnext_tiny" and encoder.image_mean == (0.485, 0.456, 0.406)
