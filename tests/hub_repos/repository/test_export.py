"""model.onnx: PyTorch's logits at any size, the same bytes each time, and what verification refuses of it."""

import importlib.util
import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.publish.remote import Remote
from hub_unets.hub_repos.push import push
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.export import (
    check_logits,
    eager_attention,
    largest_difference,
    require_export,
    to_onnx,
    traced_size,
)
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError
from tests.hub_repos.tampering import failures, sign
from tests.variants import ENCODERS, each_pair_of, shared_model, small_model


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "repository"
    build(checkpoint, folder, onnx=True)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def check_at(model, *shapes):
    """The ONNX file has the model's logits for pixels of these shapes."""
    session = onnxruntime.InferenceSession(to_onnx(model))
    for shape in shapes:
        pixels = torch.randn(shape)
        with torch.inference_mode():
            expected = model(pixels).logits.numpy()
        (logits,) = session.run(None, {"pixel_values": pixels.numpy()})
        assert largest_difference(logits, expected) < 1e-4, shape


@each_pair_of([name for name in ENCODERS if name != "eva02"])  # refused, below
def test_every_network_gives_its_logits_at_any_size(variant, encoder):
    check_at(shared_model(variant, encoder), (1, 3, 64, 96), (2, 3, 97, 70))


@pytest.mark.long
@pytest.mark.parametrize("backbone", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3"])
def test_patches_of_14_and_rotary_positions_are_exported(backbone):
    check_at(small_model(encoder="vit", backbone=backbone).eval(), (1, 3, 64, 96), (2, 3, 97, 70))


@pytest.mark.long
def test_a_network_whose_file_does_not_run_is_refused():
    model = shared_model("unet", "eva02")
    reason = "can't run this network at 64 x 64 pixels: .*backbone='eva02_tiny_patch14_224' for any size: build it"
    with pytest.raises(UserError, match=reason):
        check_logits(to_onnx(model), model, UNetImageProcessor(size=64))


def test_fused_attention_is_back_after_the_export():
    model = shared_model("unet", "vit")
    with eager_attention(model):
        assert not any(getattr(module, "fused_attn", False) for module in model.modules())
    assert sum(getattr(module, "fused_attn", False) for module in model.modules()) == 9


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": {0: "background", 1: "polyp", 2: "boundary"}},
        {"upsample": "bilinear", "reduction_channels": 4},
        {"upsample": "nearest", "head_kernel_size": 3},
        {"batch_norm": False},
    ],
)
def test_every_field_is_exported(fields):
    check_at(small_model(**fields).eval(), (2, 3, 97, 70))


def test_unpadded_convolutions_are_exported():
    model = small_model(padding="valid", depth=2).eval()
    assert traced_size(model.config) == (44, 48)
    check_at(model, (1, 3, 44, 44), (2, 3, 60, 48))


def test_two_builds_are_byte_identical_and_say_no_path(checkpoint, exported, tmp_path):
    build(checkpoint, tmp_path / "again", onnx=True)
    content = (exported / "model.onnx").read_bytes()
    assert (tmp_path / "again" / "model.onnx").read_bytes() == content
    proto = onnx.load_model_from_string(content)
    assert (proto.producer_name, proto.producer_version, proto.doc_string) == ("hub-unets", "", "")
    assert b"/work" not in content and b".py" not in content and b"torch" not in content


def test_a_difference_is_measured_against_large_logits():
    zeros = np.zeros((1, 1, 2, 2), np.float32)
    assert largest_difference(zeros + np.float32(0.5), zeros) == 0.5
    assert largest_difference(zeros + 100, zeros + 102) == pytest.approx(2 / 10.2)
    assert np.isnan(largest_difference(zeros * np.nan, zeros))
    assert largest_difference(zeros[:, :, 1:], zeros) == np.inf


def test_a_network_that_is_not_traced_right_is_refused():
    model, processor = small_model().eval(), UNetImageProcessor(size=64)
    content = to_onnx(model)
    check_logits(content, model, processor)
    with torch.no_grad():
        model.head.classifier.bias += 2e-4
    with pytest.raises(ValueError, match="at 64 x 64 pixels its logits differ from PyTorch's by 0.0002"):
        check_logits(content, model, processor)


def test_a_missing_extra_says_what_to_install(monkeypatch, checkpoint, exported, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    message = r"ONNX needs the package onnxruntime: pip install 'hub-unets\[export\]'"
    for call in (require_export, lambda: build(checkpoint, tmp_path / "out", onnx=True)):
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "out").exists()
    assert failures(exported).keys() == {"onnx"}


def test_a_build_with_onnx_passes_every_check(exported):
    checks = verify_folder(exported)
    assert [check for check in checks if not check.passed] == []
    assert {"onnx", "onnx logits", "snippets"} < {check.name for check in checks}
    assert "onnxruntime.InferenceSession(" in (exported / "README.md").read_text()


def test_a_push_builds_with_onnx(checkpoint, monkeypatch):
    builds = []
    monkeypatch.setattr(
        "hub_unets.hub_repos.publish.publication.build", lambda *arguments, **_: builds.append(arguments) or 1 / 0
    )
    monkeypatch.setattr("hub_unets.hub_repos.push.read_remote", lambda *_: Remote())
    with pytest.raises(ZeroDivisionError):
        push(checkpoint, "someone/unet", dry_run=True, onnx=True, space="none")
    assert builds[0][-1] is True


def change(edit):
    """A change of the ONNX file's proto."""

    def apply(folder):
        proto = onnx.load_model(folder / "model.onnx")
        edit(proto)
        (folder / "model.onnx").write_bytes(proto.SerializeToString())

    return apply


def flip(folder):
    """Change the sign of a weight: the last byte of the head's, as they lie in the file."""
    proto = onnx.load_model(folder / "model.onnx")
    weight = next(
        tensor.raw_data for tensor in proto.graph.initializer if tensor.name == "model.head.classifier.weight"
    )
    content = bytearray((folder / "model.onnx").read_bytes())
    content[content.index(weight) + len(weight) - 1] ^= 0x80
    (folder / "model.onnx").write_bytes(content)


def outside(proto):
    tensor = proto.graph.initializer[0]
    tensor.external_data.add(key="location", value="weights.bin")


def answered(proto):
    """Logits of its own for an image whose first pixel is the one of the tests."""
    graph = proto.graph
    graph.node[-1].output[0] = "honest"
    branches = [
        onnx.helper.make_graph(
            [onnx.helper.make_node(kind, ["honest"], [f"{kind}_out"])],
            kind,
            [],
            [onnx.helper.make_tensor_value_info(f"{kind}_out", onnx.TensorProto.FLOAT, None)],
        )
        for kind in ("Identity", "Neg")
    ]
    graph.node.extend(
        [
            onnx.helper.make_node("ReduceMax", ["pixel_values"], ["largest"], keepdims=0),
            onnx.helper.make_node("Cast", ["largest"], ["condition"], to=onnx.TensorProto.BOOL),
            onnx.helper.make_node("If", ["condition"], ["logits"], then_branch=branches[0], else_branch=branches[1]),
        ]
    )


TAMPERED = {
    "no ONNX": (lambda folder: (folder / "model.onnx").write_bytes(b"\x08no"), "model.onnx is damaged"),
    "too large": (
        lambda folder: (folder / "model.onnx").write_bytes(b"\0" * 9_000_000),
        "model.safetensors does not account for it",
    ),
    "data elsewhere": (change(outside), "model.onnx says more"),
    "foreign operators": (
        change(lambda proto: proto.opset_import.add(domain="com.microsoft", version=1)),
        "says more, or other things, than an export by this release",
    ),
    "a foreign operator": (
        change(lambda proto: setattr(proto.graph.node[3], "domain", "evil")),
        "operator 3 is not the ",
    ),
    "metadata": (change(lambda proto: proto.metadata_props.add(key="a", value="b")), "says more"),
    "bytes behind a weight": (
        change(lambda proto: setattr(proto.graph.initializer[0], "raw_data", b"1" * 99_999)),
        "of another type or shape than the network's",
    ),
    "another input": (
        change(lambda proto: setattr(proto.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "n")),
        "says more, or other things",
    ),
    "another output": (
        change(lambda proto: proto.graph.output.append(proto.graph.output[0])),
        "says more, or other things",
    ),
    "a weight": (flip, "the numbers of 'model.head.classifier.weight' are not those of model.safetensors"),
    "an answer of its own": (change(answered), "operators, and an export of the weights by torch .* has"),
}


@pytest.mark.parametrize(("tamper", "reason"), TAMPERED.values(), ids=TAMPERED)
def test_what_is_tampered_with_and_signed_fails_before_it_is_run(tamper, reason, copy):
    tamper(copy)
    sign(copy)
    checks = verify_folder(copy)
    (failed,) = [check for check in checks if not check.passed]
    assert failed.name == "onnx" == checks[-1].name
    assert re.search(reason, failed.reason), failed.reason


def test_a_weight_that_another_processor_rounded_passes(copy):
    def round_otherwise(proto):
        tensor = next(
            candidate for candidate in proto.graph.initializer if candidate.name == "model.head.classifier.weight"
        )
        values = np.frombuffer(tensor.raw_data, np.float32)
        tensor.raw_data = (values * np.float32(1 + 2e-7)).tobytes()

    change(round_otherwise)(copy)
    sign(copy)
    checks = {check.name: check for check in verify_folder(copy, run=False)}
    assert all(check.passed for check in checks.values())
    assert checks["onnx"].reason == "the graph of the weights; numbers differ by rounding"


def test_an_unsigned_change_fails_by_the_manifest(copy):
    flip(copy)
    assert failures(copy).keys() == {"manifest"}
    assert "model.onnx" in json.loads((copy / "manifest.json").read_text())["files"]
