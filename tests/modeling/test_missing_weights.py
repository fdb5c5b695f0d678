"""What `from_pretrained` gives to tensors that a checkpoint lacks, and that it keeps what the checkpoint holds."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.variants import SMALL_FIELDS, each_pair, model_class, small_config, small_model

NORMS = (nn.BatchNorm2d, nn.LayerNorm)
FIRST = {"bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def checkpoint(folder, variant="unet", encoder="plain", **fields):
    """Saves a model in which no bias, norm or statistic has its initial value; returns its state."""
    model = small_model(variant, encoder, **fields)
    for tensor in model.state_dict().values():
        if tensor.ndim < 2:
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else torch.tensor(3))
    model.save_pretrained(folder)
    return model.state_dict()


def load(folder, variant="unet", **fields):
    return model_class(variant).from_pretrained(folder, ignore_mismatched_sizes=True, **fields).eval()


def check(model, stored):
    """Tensors of the same name and shape are the checkpoint's; the others have initial values."""
    for name, tensor in model.state_dict().items():
        if name in stored and stored[name].shape == tensor.shape:
            assert torch.equal(tensor, stored[name]), name
    for path, module in model.named_modules():
        if isinstance(module, NORMS) and not path.startswith("encoder.backbone."):
            for name, tensor in module.state_dict().items():
                full = f"{path}.{name}"
                if full not in stored or stored[full].shape != tensor.shape:
                    assert (tensor == FIRST.get(name, 1)).all(), full
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).logits.isfinite().all()


def spoil(monkeypatch):
    """Memory that transformers leaves for a tensor holds NaN, as in a process that has run for a while."""
    empty = torch.empty_like

    def spoilt(tensor, **options):
        memory = empty(tensor, **options)
        return memory.fill_(torch.nan if memory.is_floating_point() else 77) if not memory.is_meta else memory

    monkeypatch.setattr(torch, "empty_like", spoilt)


def test_a_reduction_that_the_checkpoint_lacks(tmp_path, monkeypatch):
    stored = checkpoint(tmp_path)
    spoil(monkeypatch)
    model = load(tmp_path, reduction_channels=16)
    check(model, stored)
    assert model.head.classifier.weight.any()


def test_a_detail_branch_that_the_checkpoint_lacks(tmp_path, monkeypatch):
    stored = checkpoint(tmp_path, encoder="resnet18", detail_channels=0)
    spoil(monkeypatch)
    check(load(tmp_path, detail_channels=8), stored)


@pytest.mark.parametrize(
    ("stored_encoder", "encoder"),
    [
        ("plain", "resnet18"),
        ("plain", "convnext_atto"),
        pytest.param("plain", "swin_tiny", marks=pytest.mark.long),
        ("plain", "vit"),
        ("resnet18", "mobilenetv2_100"),
    ],
)
def test_another_backbone(stored_encoder, encoder, tmp_path, monkeypatch):
    stored = checkpoint(tmp_path, encoder=stored_encoder)
    spoil(monkeypatch)
    config = small_config(encoder=encoder)
    model = load(tmp_path, config=config)
    check(model, stored)
    fresh, backbone = small_model(encoder=encoder).encoder.backbone, model.encoder.backbone
    for name, expected in [*fresh.named_parameters(), *fresh.named_buffers()]:
        tensor = (
            backbone.get_parameter(name) if name in dict(backbone.named_parameters()) else backbone.get_buffer(name)
        )
        if f"encoder.backbone.{name}" in stored:
            continue
        if isinstance(expected, nn.Parameter) and expected.unique().numel() > 1:
            assert 0 < tensor.std() < 2 * expected.std(), name
        else:  # norms, layer scales, statistics, and Swin's tables
            assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("encoder", ["plain", "resnet18", "mobilenetv2_100"])
def test_a_checkpoint_without_statistics(encoder, tmp_path, monkeypatch):
    checkpoint(tmp_path, encoder=encoder)
    path = tmp_path / "model.safetensors"
    stored = {name: tensor for name, tensor in load_file(path).items() if "running_" not in name}
    stored = {name: tensor for name, tensor in stored.items() if "num_batches" not in name}
    save_file(stored, path, metadata={"format": "pt"})
    spoil(monkeypatch)
    model = load(tmp_path)
    check(model, stored)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
            assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("names", [("conv.0.0.weight",), ("classifier.bias",), ("classifier.weight", "1.0.1.weight")])
def test_a_module_that_the_checkpoint_holds_in_part_keeps_that_part(names, tmp_path, monkeypatch):
    checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = {name: tensor for name, tensor in load_file(path).items() if not name.endswith(names)}
    save_file(stored, path, metadata={"format": "pt"})
    spoil(monkeypatch)
    check(load(tmp_path), stored)


def test_weights_of_a_unet_in_a_transunet(tmp_path, monkeypatch):
    stored = checkpoint(tmp_path)
    spoil(monkeypatch)
    model = load(tmp_path, "transunet", **SMALL_FIELDS, position_grid=16)
    check(model, stored)
    assert model.decoder.bottleneck.positions.std().item() == pytest.approx(0.02, rel=0.2)
    for layer in model.decoder.bottleneck.layers:
        assert layer.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert not layer.query_key_value.bias.any()


@each_pair
def test_a_model_built_without_memory_gets_every_value(variant, encoder, monkeypatch):
    """As in transformers' own tests: `to_empty`, then `init_weights`, gives the values of a new model."""
    expected = small_model(variant, encoder)
    with torch.device("meta"):
        model = model_class(variant)(copy.deepcopy(expected.config))
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        with torch.no_grad():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
    model.init_weights()
    buffers = dict(expected.named_buffers())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())
    for name, tensor in model.named_parameters():
        reference = expected.get_parameter(name)
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, reference) if reference.unique().numel() == 1 else tensor.unique().numel() > 1, name


def test_a_loaded_backbone_draws_nothing(tmp_path):
    checkpoint(tmp_path, encoder="swin_tiny")
    torch.manual_seed(5)
    load(tmp_path)
    random_numbers = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(random_numbers, torch.rand(3))
