"""Every variant with every encoder: sizes, gradients and loading for all pairs, the rest as `each_pair`."""

import copy
import shutil

import pytest
import torch
from torch.export import Dim, export
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.variants import (
    BACKBONES,
    ENCODERS,
    each_encoder,
    each_pair,
    each_pair_of,
    each_variant,
    model_class,
    shared_model,
    small_config,
    small_model,
)

SIZES = [(32, 32), (33, 47), (65, 97), (255, 64)]


def without_drop_path(model):
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


@each_variant
@each_encoder
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_logits_have_the_size_of_the_input(variant, encoder, size):
    logits = shared_model(variant, encoder)(torch.rand(1, 3, *size)).logits
    assert logits.shape == (1, 1, *size)
    assert logits.isfinite().all()


@each_variant
@pytest.mark.parametrize(("encoder", "steps"), [("plain", 3), pytest.param("resnet18", 5, marks=pytest.mark.long)])
@torch.no_grad()
def test_logits_have_the_size_of_a_large_odd_input(variant, encoder, steps):
    model = small_model(variant, encoder, decoder_channels=[4] * steps).eval()
    assert model(torch.rand(1, 3, 1024, 1021)).logits.shape == (1, 1, 1024, 1021)


@each_variant
@pytest.mark.parametrize("encoder", ["plain", "convnext_atto"])
@torch.no_grad()
def test_padding_is_zeros_on_the_right_and_below(variant, encoder):
    model = shared_model(variant, encoder)
    pixels = torch.rand(1, 3, 41, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :41, :70] = pixels
    if encoder == "plain":
        padded = padded[..., :48, :72]
    assert torch.equal(model(pixels).logits, model(padded).logits[..., :41, :70])


@each_variant
@each_encoder
def test_every_parameter_receives_a_gradient(variant, encoder):
    model = without_drop_path(small_model(variant, encoder)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # ResNet's last batch norm of a block starts at 0 and would block the gradient
                parameter.fill_(0.1)
    labels = torch.randint(0, 2, (2, 64, 64))
    model(torch.rand(2, 3, 64, 64), labels=labels).loss.backward()
    lacking = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert lacking == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_variant
@each_encoder
def test_top_level_names_are_the_same_for_all(variant, encoder):
    names = {name.split(".")[0] for name in shared_model(variant, encoder).state_dict()}
    assert names == {"encoder", "decoder", "head"}


@each_variant
@each_encoder
@torch.no_grad()
def test_a_saved_model_comes_back_bit_equal(variant, encoder, tmp_path):
    model = small_model(variant, encoder).train()
    model(torch.rand(2, 3, 64, 64))  # batch norm's statistics leave their defaults
    model.eval().save_pretrained(tmp_path)
    loaded, info = model_class(variant).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    loaded = copy.deepcopy(loaded)  # a file's tensors are not aligned in memory, and some kernels then round otherwise
    for size in (64, 96):
        pixels = torch.rand(1, 3, size, size + 32)
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)


@each_pair
def test_bfloat16_autocast_stays_close(variant, encoder):
    model = without_drop_path(small_model(variant, encoder)).eval()
    pixels, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    with torch.no_grad():
        exact = model(pixels).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixels, labels=labels)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    difference = (output.logits.float() - exact).square().mean().sqrt()
    assert 0 < difference < 0.15 * exact.std()  # random weights: a trained network is closer
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_pair
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(variant, encoder):
    model = without_drop_path(small_model(variant, encoder)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))

    def gradients():
        calls = {}

        def count(module, *_):
            calls[module] = calls.get(module, 0) + 1

        leaves = [part for part in model.modules() if not list(part.children()) and list(part.parameters())]
        hooks = [leaf.register_forward_hook(count) for leaf in leaves]
        model.load_state_dict(state)
        model.zero_grad()
        model(pixels, labels=labels).loss.backward()
        for hook in hooks:
            hook.remove()
        names = {leaf: name for name, leaf in model.named_modules()}
        recomputed = {names[leaf].split(".")[0] for leaf, number in calls.items() if number > 1}
        return recomputed, [parameter.grad.clone() for parameter in model.parameters()]

    recomputed, plain = gradients()
    assert recomputed == set()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        recomputed, checkpointed = gradients()
        assert recomputed >= {"encoder", "decoder"}
        for expected, gradient in zip(plain, checkpointed, strict=True):
            torch.testing.assert_close(expected, gradient)
    model.gradient_checkpointing_disable()
    assert gradients()[0] == set()


@each_variant
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_checkpointing_calls_the_function_of_transformers(variant):
    model = small_model(variant).train()
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    model.gradient_checkpointing_enable()
    calls = []
    for layer in layers:  # as offload and every_n_layers of transformers set them
        layer._gradient_checkpointing_func = lambda function, *inputs: calls.append(0) or function(*inputs)
    layers[0].gradient_checkpointing = False
    model(torch.rand(2, 3, 64, 64))
    assert len(calls) == len(layers) - 1
    model.eval()(torch.rand(1, 3, 64, 64))
    assert len(calls) == len(layers) - 1


@each_variant
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_a_decoder_learns_above_a_frozen_encoder_with_reentrant_checkpointing(variant):
    model = small_model(variant).train()
    model.freeze_encoder()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model(torch.rand(2, 3, 64, 64), labels=torch.randint(0, 2, (2, 64, 64))).loss.backward()
    assert all(part.grad is None for part in model.encoder.parameters())
    assert all(part.grad is not None for part in model.decoder.parameters())


@each_variant
def test_units_that_must_not_be_cut_are_named(variant):
    for encoder in ("plain", "resnet18"):
        model = shared_model(variant, encoder)
        units = {type(part).__name__ for part in model.modules() if isinstance(part, GradientCheckpointingLayer)}
        assert units - {"TransUNetLayer"} <= set(model._no_split_modules)  # the layers lie in TransUNetBottleneck
    assert {"BackboneEncoder"} <= set(model._no_split_modules)


@each_pair
def test_the_config_asks_for_hidden_states_and_they_have_gradients(variant, encoder):
    model = small_model(variant, encoder, output_hidden_states=True).train()
    output = model(torch.rand(2, 3, 64, 64))
    for level in output.hidden_states:
        level.retain_grad()
    output.logits.sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in output.hidden_states)
    assert model(torch.rand(2, 3, 64, 64), output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(torch.rand(2, 3, 64, 64)), tuple)


@each_pair
@torch.no_grad()
def test_export_at_a_fixed_size(variant, encoder):
    model = shared_model(variant, encoder)
    exported = export(model, (torch.rand(1, 3, 64, 64),)).module()
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(exported(pixels).logits, model(pixels).logits)


@each_pair_of([name for name in ENCODERS if name != "swin_tiny"])  # pads inside its blocks
@torch.no_grad()
def test_export_for_any_batch_and_multiples_of_the_stride(variant, encoder):
    model = shared_model(variant, encoder)
    height, width = (model.stride * Dim(name, min=1, max=64) for name in ("height", "width"))
    shapes = {"pixel_values": {0: Dim("batch"), 2: height, 3: width}}
    exported = export(model, (torch.rand(2, 3, 64, 96),), dynamic_shapes=shapes).module()
    pixels = torch.rand(1, 3, 128, 160)
    torch.testing.assert_close(exported(pixels).logits, model(pixels).logits)


@each_pair
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_trace_at_one_size_answers_at_others(variant, encoder):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = shared_model(variant, encoder)

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    traced = torch.jit.trace(Logits(), torch.rand(1, 3, 64, 64), check_trace=False)
    for shape in ((2, 3, 65, 97), (1, 3, 96, 33)):
        pixels = torch.rand(shape)
        torch.testing.assert_close(traced(pixels), shared_model(variant, encoder)(pixels).logits)


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler")
@each_variant
@torch.no_grad()
def test_compiled_model_answers_at_two_sizes(variant):
    torch.compiler.reset()  # else other models' graphs count towards the limit of recompilations
    model = small_model(variant, depth=1).eval()
    compiled = torch.compile(model, fullgraph=True)
    for size in ((32, 32), (33, 46)):
        pixels = torch.rand(1, 3, *size)
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "encoder", [pytest.param(name, marks=pytest.mark.slow if name == "swin_tiny" else []) for name in BACKBONES]
)
@torch.no_grad()
def test_a_backbone_is_compiled_to_one_graph(encoder):
    torch.compiler.reset()
    model = shared_model("unet", encoder)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # no C++, which would take minutes
    for size in ((32, 32), (33, 46)):
        pixels = torch.rand(1, 3, *size)
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)


@each_pair
def test_frozen_encoder_stays_as_it_is_through_training(variant, encoder):
    model = small_model(variant, encoder)
    model.freeze_encoder()

    def changed_by_a_step():
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        model(torch.rand(2, 3, 64, 64), labels=torch.randint(0, 2, (2, 64, 64))).loss.backward()
        optimizer.step()
        return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}

    pretrained = "encoder." if encoder == "plain" else "encoder.backbone."
    changed = changed_by_a_step()
    assert changed and not any(name.startswith(pretrained) for name in changed)
    assert not any(part.training for part in model.get_submodule(pretrained[:-1]).modules())
    assert model.decoder.training
    new = {name.split(".")[1] for name in changed if name.startswith("encoder.")}
    assert new == {name for name, _ in model.encoder.named_children() if name in ("detail", "pyramid")}
    model.unfreeze_encoder()
    assert model.encoder.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    changed = changed_by_a_step()
    assert any(name.startswith("encoder.") and name.endswith("weight") for name in changed)
    assert any(name.startswith("encoder.") and name.endswith("running_mean") for name in changed)


@each_variant
def test_freezing_keeps_evaluation_mode(variant):
    model = small_model(variant).eval()
    model.freeze_encoder()
    model.unfreeze_encoder()
    assert not any(part.training for part in model.modules())


@each_variant
@pytest.mark.parametrize("encoder", ["plain", "resnet18"])
@pytest.mark.parametrize("fields", [{"num_channels": 1}, {"num_channels": 5}, {"num_labels": 4}, {"num_labels": 2}])
@torch.no_grad()
def test_channels_and_labels(variant, encoder, fields):
    model = small_model(variant, encoder, **fields).eval()
    logits = model(torch.rand(2, fields.get("num_channels", 3), 40, 48)).logits
    assert logits.shape == (2, 4 if fields.get("num_labels") == 4 else 1, 40, 48)


@each_variant
@pytest.mark.parametrize("encoder", ["plain", "resnet18", "convnext_atto"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@torch.no_grad()
def test_upsampling_by_interpolation(variant, encoder, mode):
    model = small_model(variant, encoder, upsample=mode).eval()
    assert not any(isinstance(part, torch.nn.ConvTranspose2d) for part in model.modules())
    assert model(torch.rand(1, 3, 65, 40)).logits.shape == (1, 1, 65, 40)


@each_variant
@pytest.mark.parametrize("encoder", BACKBONES)
@torch.no_grad()
def test_backbone_without_a_detail_branch(variant, encoder):
    model = small_model(variant, encoder, detail_channels=0).eval()
    assert model.encoder.channels[0] == 0
    assert model(torch.rand(1, 3, 65, 40)).logits.shape == (1, 1, 65, 40)


@each_variant
@pytest.mark.parametrize("widths", [[16, 8, 8, 8], [16, 8, 8, 8, 8, 8]])
def test_decoder_channels_of_the_wrong_length_are_refused(variant, widths):
    config = small_config(variant, "resnet18", decoder_channels=widths)
    with pytest.raises(ValueError, match="decoder_channels needs 5 widths for backbone='resnet18'"):
        model_class(variant)(config)


@each_variant
def test_a_config_changed_after_its_construction_is_checked_again(variant):
    config = small_config(variant)
    config.num_labels = 3
    assert model_class(variant)(config)(torch.rand(1, 3, 16, 16)).logits.shape == (1, 3, 16, 16)
    config.num_labels = 1
    with pytest.raises(ValueError, match="num_labels=1 leaves no background"):
        model_class(variant)(config)
