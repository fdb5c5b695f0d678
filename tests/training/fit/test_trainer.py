"""The Trainer in this process: gradient, optimizer, averaged weights, validation, best epoch, early stopping."""

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.training.data.phantoms import phantom_dataset
from hub_unets.training.data.reading import read_labels
from hub_unets.training.errors import UserError
from hub_unets.training.fit.checkpoints import last_complete
from hub_unets.training.fit.precision import Float32Conv2d
from hub_unets.training.fit.trainer import UNetTrainer, is_finite, out_of_patience
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.score import score
from hub_unets.training.settings.run_arguments import default_precision
from tests.training.fit.trainers import IMAGES, VALIDATION, plain_model
from tests.variants import small_model

SEQUENCE = [0.2, 0.5, 0.5, 0.4, 0.3, 0.6]


class ScriptedTrainer(UNetTrainer):
    """Finds the Dice of SEQUENCE, one an epoch."""

    def _validation_metrics(self, prediction):
        return {**super()._validation_metrics(prediction), "dice": SEQUENCE[round(self.state.epoch) - 1]}


def gradients_of_first_steps(trainer):
    """The gradient of each optimizer step of the first epoch, before clipping."""
    gradients = []

    def keep(*_):
        gradients.append({name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()})

    trainer._clip_grad_norm = lambda model: keep()
    trainer.train()
    return gradients


def test_gradient_of_one_step_does_not_depend_on_accumulation(make_trainer):
    runs = [(8, 1), (4, 2), (2, 4)]
    gradients = [
        gradients_of_first_steps(
            make_trainer(plain_model(), per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        )
        for size, steps in runs
    ]
    assert [len(steps) for steps in gradients] == [2, 2, 2]  # 8 images, then 3
    for other in gradients[1:]:
        for one_step, other_step in zip(gradients[0], other, strict=True):
            for name, gradient in one_step.items():
                torch.testing.assert_close(other_step[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_gradient_is_that_of_the_mean_over_images(make_trainer):
    model = plain_model()
    trainer = make_trainer(copy.deepcopy(model), per_device_train_batch_size=4, gradient_accumulation_steps=4)
    (gradients,) = gradients_of_first_steps(trainer)
    items = [trainer.train_dataset[0, index] for index in range(IMAGES)]
    logits = model(torch.stack([item["pixel_values"] for item in items])).logits
    trainer.loss(logits, torch.stack([item["labels"] for item in items])).mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("encoder", ["plain", "resnet18"])
def test_encoder_has_its_own_rate_and_norms_and_biases_no_decay(make_trainer, encoder):
    model = small_model(encoder=encoder)
    trainer = make_trainer(
        model, encoder_learning_rate=1e-4, learning_rate=1e-2, weight_decay=0.1, lr_scheduler_type="linear"
    )
    trainer.create_optimizer_and_scheduler(10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pretrained = "encoder." if encoder == "plain" else "encoder.backbone."
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm))
        for name, _ in module.named_parameters(recurse=False)
    }
    checked = set()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            checked.add(name)
            assert group["initial_lr"] == (1e-4 if name.startswith(pretrained) else 1e-2), name
            assert group["weight_decay"] == (0 if name in norms or name.endswith("bias") else 0.1), name
    assert checked == set(names.values())
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert np.allclose([group["lr"] for group in trainer.optimizer.param_groups], 0.9 * np.array(rates))


def test_no_decay_on_norms_without_an_encoder_rate(make_trainer):
    trainer = make_trainer(small_model(), weight_decay=0.1)
    decays = {
        parameter.dim() > 1: group["weight_decay"]
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert decays == {True: 0.1, False: 0.0}


def test_frozen_encoder_stays_as_it_is(make_trainer):
    model = small_model(depth=2)
    model.freeze_encoder()
    before = copy.deepcopy(model.state_dict())
    make_trainer(model, ema_decay=0.5, encoder_learning_rate=0.1).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not [name for name in changed if name.startswith("encoder.")]
    assert any("running_mean" in name for name in changed)


def test_average_equals_the_one_computed_by_hand_and_is_what_is_scored(make_trainer):
    model = small_model(base_channels=4, depth=2)
    weights = []
    trainer = make_trainer(model, ema_decay=0.7)
    follow = trainer.ema.update_parameters
    trainer.ema.update_parameters = lambda net: (weights.append(copy.deepcopy(net.state_dict())), follow(net))
    trainer.train()
    assert len(weights) == 3
    averaged = weights[0]
    for step in weights[1:]:
        averaged = {name: 0.7 * averaged[name] + 0.3 * value for name, value in step.items()}
    final = trainer.state.log_history[-2]["eval_dice"]
    assert trainer.load_best()["step"] == 3
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, averaged[name], rtol=1e-5, atol=1e-6)
    assert dice_of_score(trainer, model) == pytest.approx(final, abs=1e-6)


def dice_of_score(trainer, model):
    """The validation Dice by the path of a user: image files, processor, model."""
    table = phantom_dataset(IMAGES + VALIDATION, size=64).select(range(IMAGES, IMAGES + VALIDATION))
    scores = score(model.eval(), trainer.processor, table)
    return metrics_from_counts(np.stack(scores.counts))["dice"].mean()


def test_validation_equals_scoring_as_a_user_would(make_trainer):
    model = small_model(base_channels=4, depth=2)
    trainer = make_trainer(model, per_device_eval_batch_size=3)
    trainer.train()
    assert trainer.evaluate()["eval_dice"] == pytest.approx(dice_of_score(trainer, model), abs=1e-6)


def test_validation_keeps_counts_only(make_trainer):
    trainer = make_trainer(small_model(base_channels=4, depth=2))
    batch = next(iter(trainer.get_eval_dataloader()))
    loss, counts, numbers = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    assert loss.dim() == 0 and loss.dtype == torch.float32
    assert counts.shape == (VALIDATION, 1, 4) and counts.dtype == torch.int64
    assert numbers.tolist() == list(range(VALIDATION))
    native = [image.shape for image in phantom_masks()]
    assert counts.sum(dim=(1, 2)).tolist() == [height * width for height, width in native]  # at the original size


def phantom_masks():
    table = phantom_dataset(IMAGES + VALIDATION, size=64)
    return [read_labels(row["annotation"], row["name"]) for row in table.select(range(IMAGES, len(table)))]


def test_a_tie_keeps_the_earlier_epoch(make_trainer):
    trainer = make_trainer(plain_model(), trainer=ScriptedTrainer, num_train_epochs=5)
    trainer.train_from(None)
    best = trainer.load_best()
    assert best == {"step": 6, "epoch": 2.0, "dice": 0.5}
    kept = sorted(path.name for path in last_complete(trainer.args.output_dir)[0].parent.glob("checkpoint-*"))
    assert kept == ["checkpoint-15", "checkpoint-6"]


@pytest.mark.parametrize(
    ("better", "options", "rates"),
    [
        (True, {}, [4, 4, 4, 4, 2, 2]),  # SEQUENCE as Dice: epochs 3 and 4 are no better than epoch 2
        (False, {}, [4, 4, 4, 2, 2, 1]),  # as a loss: none is better than epoch 1
        (True, {"mode": "min"}, [4, 4, 4, 2, 2, 1]),
        (True, {"patience": 0, "min_lr": 0.0015}, [4, 4, 4, 2, 1.5, 1.5]),
    ],
)
def test_rate_falls_on_a_plateau_of_the_metric_that_decides(make_trainer, better, options, rates):
    trainer = make_trainer(
        plain_model(),
        trainer=ScriptedTrainer,
        num_train_epochs=6,
        learning_rate=0.004,
        logging_strategy="epoch",
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"factor": 0.5, "patience": 1, **options},
        greater_is_better=better,
    )
    trainer.train()
    learning_rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert learning_rates == pytest.approx([0.001 * rate for rate in rates])


def test_early_stopping_is_off_by_default(make_trainer):
    trainer = make_trainer(plain_model(), trainer=ScriptedTrainer, num_train_epochs=6)
    trainer.train_from(None)
    assert trainer.state.epoch == 6 and trainer.load_best()["dice"] == 0.6


def test_early_stopping_counts_on_through_a_resume(make_trainer, tmp_path):
    options = {"trainer": ScriptedTrainer, "output_dir": tmp_path, "early_stopping_patience": 2}
    first = make_trainer(plain_model(), num_train_epochs=3, **options)
    first.train_from(None)  # the highest in epoch 2, one worse epoch after it
    assert first.state.epoch == 3
    checkpoint = last_complete(tmp_path)[0]
    state = checkpoint / "trainer_state.json"
    state.write_text(state.read_text().replace('"max_steps": 9', '"max_steps": 18'))  # as if killed on the way to 6
    for _ in range(2):  # stops in epoch 4; resumed from there, it does not go on
        resumed = make_trainer(plain_model(), num_train_epochs=6, **options)
        resumed.train_from(checkpoint)
        assert resumed.state.epoch == 4 and resumed.load_best()["epoch"] == 2.0
        checkpoint = last_complete(tmp_path)[0]


def weights_at_epoch_ends(trainer):
    """The averaged weights at the end of each epoch, in a list that training fills."""
    weights, evaluate = [], trainer.evaluate

    def keep(*args, **kwargs):
        weights.append(copy.deepcopy((trainer.ema.module if trainer.ema else trainer.model).state_dict()))
        return evaluate(*args, **kwargs)

    trainer.evaluate = keep
    return weights


@pytest.mark.parametrize("ema_decay", [None, 0.7])
def test_mean_of_the_last_two_of_three_epochs(make_trainer, ema_decay):
    model = small_model(base_channels=4, depth=2)
    trainer = make_trainer(model, num_train_epochs=3, average_last=2, ema_decay=ema_decay)
    ends = weights_at_epoch_ends(trainer)
    trainer.train_from(None)
    best = trainer.load_best()
    assert len(ends) == 3
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (ends[1][name] + ends[2][name]) / 2, rtol=1e-5, atol=1e-6, msg=name)
    assert best == {
        "step": 9,
        "epoch": 3.0,
        "averaged": 2,
        "dice": pytest.approx(dice_of_score(trainer, model), abs=1e-6),
    }


def test_a_better_epoch_before_the_last_ones_changes_no_mean(make_trainer):
    trainer = make_trainer(plain_model(), trainer=ScriptedTrainer, num_train_epochs=4, average_last=1)
    ends = weights_at_epoch_ends(trainer)
    trainer.train_from(None)  # the best is epoch 2
    assert trainer.load_best()["step"] == 12
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, ends[3][name]), name


def test_average_last_of_more_epochs_than_there_are_and_early_stopping_are_refused(make_trainer):
    with pytest.raises(ValueError, match="average_last=3 needs as many epochs; this run has 2"):
        make_trainer(plain_model(), num_train_epochs=2, average_last=3).train_from(None)
    with pytest.raises(ValueError, match="leave one of them out"):
        make_trainer(plain_model(), average_last=1, early_stopping_patience=2)
    with pytest.raises(ValueError, match="average_last must be at least 1, got 0"):
        make_trainer(plain_model(), average_last=0)


@pytest.mark.parametrize(
    ("dices", "patience", "stops"),
    [([], 1, False), ([0.1], 1, False), ([0.2, 0.1], 1, True), ([0.2, 0.2], 1, True), ([0.2, 0.1, 0.3], 1, False)]
    + [([0.3, 0.1, 0.2], 2, True), ([0.3, 0.1, 0.2], 3, False), ([0.3, 0.1, 0.2], None, False)],
)
def test_out_of_patience(dices, patience, stops):
    history = [{"loss": 1.0}, *({"eval_dice": dice, "eval_loss": -dice, "eval_iou": 0.5} for dice in dices)]
    args = SimpleNamespace(early_stopping_patience=patience, metric_for_best_model="dice", greater_is_better=True)
    assert out_of_patience(history, args) is stops
    args.metric_for_best_model, args.greater_is_better = "eval_loss", False
    assert out_of_patience(history, args) is stops
    args.metric_for_best_model = "iou"  # the first is the best
    assert out_of_patience(history, args) is (patience is not None and len(dices) > patience)


def test_bf16_learns_and_keeps_float32_weights(make_trainer):
    model = small_model(base_channels=4, depth=2)
    trainer = make_trainer(model, precision="bf16", num_train_epochs=8, logging_steps=1, eval_strategy="no")
    assert trainer.args.bf16 and not trainer.args.fp16
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_slow_bf16_layers_are_float32(make_trainer, precision):
    trainer = make_trainer(small_model(backbone="mobilenetv2_050"), precision=precision, ema_decay=0.9)
    expected = [Float32Conv2d if precision == "bf16" else torch.nn.Conv2d] * 4
    for model in (trainer.model, trainer.ema.module):
        layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1]
        assert [type(layer) for layer in layers if layer.stride[0] > 1] == expected


def test_channels_last_is_the_default(make_trainer):
    trainer = make_trainer(plain_model())
    kernels = [layer.weight for layer in trainer.model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_default_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert default_precision(use_cpu=True) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert default_precision(use_cpu=True) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert default_precision(use_cpu=False) == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert default_precision(use_cpu=False) == "fp16"


def test_valid_padding_trains_through_the_same_path(make_trainer):
    model = plain_model(padding="valid")
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(model, max_steps=1)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trainer.evaluate()["eval_dice"] == pytest.approx(dice_of_score(trainer, model), abs=1e-6)


def test_multi_class_trains_on_class_indices(make_trainer, rows):
    model = plain_model(num_labels=3)
    table = rows.map(two_classes)
    trainer = make_trainer(model, loss={"ce": 1, "dice": 1}, table=table, max_steps=1)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
    batch = next(iter(trainer.get_eval_dataloader()))
    assert set(batch["labels"].unique().tolist()) == {0, 1, 2}
    assert trainer.prediction_step(trainer.model, batch, False)[1].shape == (VALIDATION, 2, 4)


def two_classes(row):
    """The left half of each polyp becomes class 2."""
    mask = (np.array(Image.open(io.BytesIO(row["annotation"]["bytes"]))) > 0).astype(np.uint8)
    columns = np.flatnonzero(mask.any(axis=0))
    mask[:, : int(columns.mean())] *= 2
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return {"annotation": {"bytes": buffer.getvalue(), "path": row["annotation"]["path"]}}


@pytest.mark.parametrize(
    ("field", "value"),
    [("save_total_limit", 1), ("save_only_model", True), ("ignore_data_skip", True), ("save_strategy", "no")]
    + [("early_stopping_patience", 0)],
)
def test_fields_that_would_lose_a_checkpoint_are_refused(make_trainer, field, value):
    with pytest.raises(ValueError, match=field):
        make_trainer(plain_model(), **{field: value})


@pytest.mark.parametrize("variant", ["unetplusplus", "unet3plus"])
def test_deep_supervision_weighs_all_logits_alike(make_trainer, variant):
    torch.manual_seed(0)
    model = small_model(variant, depth=2, batch_norm=False, deep_supervision=True, decoder_channels=[4, 4]).train()
    trainer = make_trainer(model)
    batch = next(iter(trainer.get_train_dataloader()))
    output = model(pixel_values=batch["pixel_values"])
    every = [output.logits, *output.auxiliary_logits]
    expected = torch.stack([trainer.loss(logits, batch["labels"]).mean() for logits in every]).mean()
    assert len(every) > 1
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected)
    torch.testing.assert_close(
        trainer.compute_loss(model.eval(), batch),
        trainer.loss(model(batch["pixel_values"]).logits, batch["labels"]).mean(),
    )


def test_copies_lengthen_the_epoch(make_trainer):
    trainer = make_trainer(plain_model(), copies=3)
    batches = list(trainer.get_train_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) == 3 * IMAGES


class PoisonedTrainer(UNetTrainer):
    """Its loss is NaN in one step."""

    poisoned = 5

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        is_now = model.training and self.state.global_step + 1 == self.poisoned
        return result * float("nan") if is_now else result


def test_a_loss_of_nan_ends_the_training_at_its_step(make_trainer, tmp_path):
    trainer = make_trainer(plain_model(), tmp_path, trainer=PoisonedTrainer, num_train_epochs=3)
    with pytest.raises(UserError, match="diverged at step 5: the loss is not finite; .*checkpoint-3, the last good"):
        trainer.train_from(None)
    assert last_complete(tmp_path)[0].name == "checkpoint-3"
    assert trainer.state.global_step == 4 and is_finite(trainer.model)


def test_on_a_device_the_step_of_nan_is_found_at_the_next_log(make_trainer):
    trainer = make_trainer(plain_model())
    trainer.losses.add(torch.tensor(1.0), 1)
    for step in (2, 3):
        trainer.losses.add(torch.tensor(float("inf")), step)
    with pytest.raises(UserError, match="diverged at step 2: the loss is not finite; there is no good checkpoint"):
        trainer.log({"loss": 1.0})


def test_weights_that_are_not_finite_are_never_saved(make_trainer, tmp_path):
    trainer = make_trainer(plain_model(), tmp_path)
    with torch.no_grad():
        trainer.model.head.classifier.bias.fill_(float("inf"))
    with pytest.raises(UserError, match="the network is not finite"):
        trainer._save_checkpoint(trainer.model, None)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_validation_loss_of_nan_ends_the_training(make_trainer):
    trainer = make_trainer(plain_model())
    with torch.no_grad():
        trainer.model.head.classifier.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged at step 0: the validation loss is not finite"):
        trainer.evaluate()


def test_labels_are_looked_at_before_they_reach_the_device(make_trainer, monkeypatch):
    trainer = make_trainer(plain_model())
    items = [trainer.train_dataset[0, index] for index in range(2)]
    items[0]["labels"][0, 0] = 2
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        trainer.data_collator(items)
    items[0]["labels"][0, 0] = 255
    batch = trainer.data_collator(items)
    for name in ("any", "all", "item", "__bool__", "tolist"):  # each of which would make a device wait
        monkeypatch.setattr(torch.Tensor, name, None)
    trainer.compute_loss(trainer.model.eval(), batch)


def test_best_checkpoint_that_was_damaged_is_named(make_trainer, tmp_path):
    trainer = make_trainer(plain_model(), tmp_path, trainer=ScriptedTrainer, num_train_epochs=3)
    trainer.train_from(None)
    weights = tmp_path / "checkpoint-6/model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    for action in (trainer.load_best, lambda: trainer.train_from(tmp_path / "checkpoint-9")):
        with pytest.raises(UserError, match="checkpoint-6, the checkpoint of the best validation so far, is damaged"):
            action()
