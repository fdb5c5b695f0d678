"""model_int8.onnx: what it holds, whose logits it gives, and what the builder and verification make of it."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from hub_unets.hub_repos.checks.int8_file import check_int8
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.repository import int8
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.export import load_network
from hub_unets.hub_repos.repository.int8 import INT8, OnnxNetwork, export_int8, scale_and_zero
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.errors import UserError
from tests.hub_repos.tampering import sign
from tests.variants import small_model

IMAGES = [Image.fromarray(phantom(1, index, 64)[0]) for index in range(3)]


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """A finished run with its network in int8."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("int8") / "run")
    (folder / INT8).write_bytes(export_int8(folder, IMAGES))
    return folder


@pytest.fixture(scope="module")
def built(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8-built") / "repository"
    build(run, folder)
    return folder


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def noise_share(network, folder):
    """The mean square difference of the int8 logits from the network's, as a share of their variance."""
    processor = UNetImageProcessor.from_pretrained(folder)
    pixels = processor(IMAGES)["pixel_values"]
    found = OnnxNetwork(export_int8(folder, IMAGES), network.config)(pixels).logits
    with torch.inference_mode():
        expected = network(pixels).logits
    assert found.shape == expected.shape
    return float((found - expected).square().mean() / expected.var())


@pytest.mark.parametrize(
    ("variant", "encoder"),
    [
        ("unet", "plain"),
        pytest.param("attention_unet", "mobilenetv2_100", marks=pytest.mark.long),
        pytest.param("unetplusplus", "resnet18", marks=pytest.mark.long),
        pytest.param("unet3plus", "plain", marks=pytest.mark.long),
        pytest.param("transunet", "resnet18", marks=pytest.mark.long),
        pytest.param("unet", "convnext_atto", marks=pytest.mark.long),
    ],
)
def test_its_logits_are_the_networks(variant, encoder, tmp_path):
    torch.manual_seed(0)
    network = small_model(variant, encoder).eval()
    network.save_pretrained(tmp_path)
    UNetImageProcessor(size=64).save_pretrained(tmp_path)
    assert noise_share(network, tmp_path) < 0.1


def test_every_convolution_after_the_first_map_is_int8_and_the_ranges_are_those_of_the_images(run):
    graph = onnx.load_model(run / INT8).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    kinds = [f"{node.name}.1.int" in tensors for node in convolutions]
    first = kinds.index(True)
    assert all(kinds[first:]) and all("stages.0" in node.name for node in convolutions[:first]) and first == 2
    assert all(tensors[f"{node.name}.1.int"].dtype == np.int8 for node in convolutions[first:])
    assert not any(
        tensor.dtype == np.float32 and tensor.ndim == 4 for name, tensor in tensors.items() if "1.int" in name
    )
    bright = [Image.fromarray(np.full((64, 64, 3), 255, np.uint8))]
    other = onnx.load_model_from_string(export_int8(run, bright)).graph
    scales = {tensor.name: tensor for tensor in other.initializer if tensor.name.endswith("scale")}
    assert any(scales[name] != tensor for name, tensor in ((t.name, t) for t in graph.initializer) if name in scales)


def test_zero_is_exact_and_the_range_is_kept():
    scale, zero = scale_and_zero(-1.0, 3.0)
    assert (zero, zero.dtype, scale.dtype) == (64, np.uint8, np.float32) and np.isclose(255 * scale, 4)
    assert scale_and_zero(2.0, 5.0)[1] == 0 and scale_and_zero(-2.0, -1.0)[1] == 255
    assert np.isfinite(scale_and_zero(0.0, 0.0)[0]) and scale_and_zero(0.0, 0.0)[0] > 0


def test_it_is_the_same_each_time(run):
    assert export_int8(run, IMAGES) == (run / INT8).read_bytes()


def test_two_channels_keep_the_heads_own_logits(run, tmp_path):
    build(run, tmp_path / "repository", two_channels=True)
    assert check_int8(tmp_path / "repository").startswith("the weights, rounded")


def test_a_build_takes_it_along_and_passes_every_check(built):
    checks = verify_folder(built, run=False)
    assert not [check for check in checks if not check.passed] and "int8" in {check.name for check in checks}
    assert INT8 in json.loads((built / "manifest.json").read_text())["files"]
    assert INT8 in (built / "README.md").read_text()


def changed(folder, change):
    """Change the file's proto, and give the folder a fitting manifest."""
    proto = onnx.load_model(folder / INT8)
    change({tensor.name: tensor for tensor in proto.graph.initializer}, proto)
    (folder / INT8).write_bytes(proto.SerializeToString())
    sign(folder)


def first_tensor(ending, function):
    """A change of the first tensor whose name has this ending."""

    def change(tensors, proto):
        name = next(name for name in tensors if name.endswith(ending))
        array = onnx.numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(function(array).astype(array.dtype), name))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_tensor(".1.int", np.negative), "are not those of model.safetensors"),
        (first_tensor(".1.scale", lambda scales: 1.5 * scales), "the numbers of .* are not those"),
        (first_tensor(".2.int", lambda bias: bias + 9), "the numbers of .* are not those"),
        (lambda tensors, proto: proto.graph.node.pop(), "operators, and an export"),
        (lambda tensors, proto: setattr(proto, "doc_string", "more"), "says more"),
        (
            lambda tensors, proto: tensors[next(n for n in tensors if n.endswith("zero"))].dims.append(1),
            "another type",
        ),
        (lambda tensors, proto: proto.graph.initializer.pop(), "lacks|holds other tensors"),
    ],
    ids=["weights", "scales", "biases", "operator", "text", "shape", "missing"],
)
def test_another_network_is_refused(copy, change, message):
    changed(copy, change)
    with pytest.raises(UserError, match=f"^{INT8}.*({message})"):
        check_int8(copy)


def test_ranges_that_do_not_fit_are_refused(copy, monkeypatch):
    monkeypatch.setattr(int8, "scale_and_zero", lambda least, largest: scale_and_zero(least / 50, largest / 50))
    (copy / INT8).write_bytes(export_int8(copy, IMAGES))
    with pytest.raises(UserError, match=f"^{INT8}: its ranges do not fit"):
        check_int8(copy)


def test_one_of_other_weights_and_a_damaged_one_are_refused(copy, tmp_path):
    network, other = load_network(copy), shutil.copytree(copy, tmp_path / "other")
    with torch.no_grad():
        network.decoder.blocks[0].conv[0][0].weight.mul_(-1)
    network.save_pretrained(other)
    (copy / INT8).write_bytes(export_int8(other, IMAGES))
    with pytest.raises(UserError, match=f"^{INT8}: the weights of '.*decoder/blocks.0.*' are not those of model.safe"):
        check_int8(copy)
    (copy / INT8).write_bytes(b"\x08no")
    with pytest.raises(UserError, match="is damaged"):
        check_int8(copy)
