import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.weights import as_any_new_file, load_weights, read_shapes, save_tensors
from tests.variants import small_model


def entry(begin, end, shape=None, dtype="F32"):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_a_file_is_read_as_it_was_written(tmp_path):
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64), "c": torch.zeros(0, 4).bfloat16()}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    assert read_shapes(tmp_path / "x.safetensors") == {"a": ("F32", (2, 3)), "b": ("I64", ()), "c": ("BF16", (0, 4))}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_that_the_umask_gives(mask, tmp_path):
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.zeros(4, 3).t()}, tmp_path / "x.safetensors")  # in another order of memory
        (tmp_path / "y").touch(mode=0o600)
        as_any_new_file(tmp_path / "y")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ["x.safetensors", "y"], 0o666 & ~mask
    )
    assert load_file(tmp_path / "x.safetensors")["a"].shape == (3, 4)


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ({"a": entry(0, 16)}, {"length": 2**40}),
        ({"a": entry(0, 16)}, {"length": 1}),
        ({"a": entry(0, 16)}, {"data": b"\0" * 17}),
        ({}, {}),
        ({"a": entry(0, 32)}, {}),
        ({"a": entry(16, 0, [0])}, {}),
        ({"a": entry(0, 12), "b": entry(8, 16)}, {}),
        ({"a": entry(0, 16), "b": entry(0, 16)}, {}),
        ({"a": entry(0, 4), "b": entry(8, 16)}, {}),
        ({"a": entry(4, 16)}, {}),
        ({"a": entry(0, 16, dtype="OBJECT")}, {}),
        ({"a": entry(0, 16, [5])}, {}),
        ({"a": entry(0, 16, [-2, -2])}, {}),
        ({"a": entry(0, 16, [2**70])}, {}),
        ({"a": 1}, {}),
        (b"[1]", {}),
        (b"\xff\xfe", {}),
        (b"[" * 100_000, {}),
    ],
    ids=str,
)
def test_a_damaged_file_is_named(header, options, tmp_path):
    path = write(tmp_path / "model.safetensors", header, **options)
    with pytest.raises(ValueError, match=r"/model\.safetensors is damaged: .*; copy or download it again"):
        read_shapes(path)


@pytest.mark.parametrize("content", [b"", b"\2\0\0", b"\0" * 100])
def test_a_short_or_zeroed_file_is_damaged(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        read_shapes(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    small_model(depth=2).save_pretrained(folder)
    return folder


WEIGHT = "head.classifier.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(WEIGHT), f"tensor '{WEIGHT}' is missing"),
        (lambda tensors: tensors.update({WEIGHT: torch.zeros(1, 5, 1, 1)}), r"is \(1, 5, 1, 1\), the network takes"),
        (lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].int()}), f"tensor '{WEIGHT}' is of I32"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(change, message, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"changed/model\.safetensors is damaged.*{message}"):
        load_weights(UNetForSemanticSegmentation, folder)


def test_sound_weights_are_loaded_in_the_precision_of_the_file(saved, tmp_path):
    model = load_weights(UNetForSemanticSegmentation, saved)
    assert not model.training
    assert torch.equal(model.state_dict()[WEIGHT], load_file(saved / "model.safetensors")[WEIGHT])
    model.half().save_pretrained(tmp_path)
    assert load_weights(UNetForSemanticSegmentation, tmp_path).dtype == torch.float16


@pytest.mark.parametrize("foreign", [False, True])
def test_scoring_says_which_file_is_damaged(foreign, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "cut")
    if foreign:
        config = {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}
        (folder / "config.json").write_text(json.dumps(config))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"cut/model\.safetensors is damaged: "):
        load_model(folder)
