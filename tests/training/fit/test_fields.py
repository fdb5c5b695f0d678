"""Every field of transformers' TrainingArguments works, or is refused with what to use instead."""

from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from hub_unets.training.errors import UserError
from hub_unets.training.fit.trainer import FIXED
from hub_unets.training.settings.arguments import parse
from hub_unets.training.settings.run_arguments import RunArguments
from hub_unets.training.settings.trainer_fields import REFUSED, REPORTS, WORKERS
from tests.training.fit.trainers import plain_model

# one value of each that trains other weights than the default
OTHER_WEIGHTS = {
    "per_device_train_batch_size": {"per_device_train_batch_size": 2},
    "num_train_epochs": {"num_train_epochs": 2},
    "max_steps": {"max_steps": 1},
    "learning_rate": {"learning_rate": 0.02},
    "lr_scheduler_type": {"lr_scheduler_type": "cosine"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 3.0}},
    "warmup_steps": {"warmup_steps": 2},
    "warmup_ratio": {"warmup_ratio": 0.5},
    "optim": {"optim": "sgd"},
    "optim_args": {"optim": "rmsprop", "optim_args": "momentum=0.5"},
    "weight_decay": {"weight_decay": 0.5},
    "adam_beta1": {"adam_beta1": 0.5},
    "adam_beta2": {"adam_beta2": 0.5},
    "adam_epsilon": {"adam_epsilon": 0.1},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 3},
    "max_grad_norm": {"max_grad_norm": 1e-9, "optim": "sgd"},
    "seed": {"seed": 7},
}
# one value of each that changes how it is computed, or what is said of it, and no weight
SAME_WEIGHTS = {
    "activation_checkpointing": {"activation_checkpointing": True},
    "activation_checkpointing_kwargs": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    },
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing_kwargs": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "torch_compile_backend": {"torch_compile_backend": "eager"},
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 1},
    "logging_strategy": {"logging_strategy": "epoch"},
    "logging_first_step": {"logging_first_step": True},
    "log_level": {"log_level": "critical"},
    "eval_strategy": {"eval_strategy": "no"},
    "eval_steps": {"eval_strategy": "steps", "eval_steps": 2},
    "eval_delay": {"eval_delay": 1},
    "eval_accumulation_steps": {"eval_accumulation_steps": 1},
    "save_strategy": {"save_strategy": "best"},
    "save_steps": {"save_strategy": "steps", "save_steps": 2},
    "metric_for_best_model": {"metric_for_best_model": "iou"},
    "dataloader_num_workers": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 1},
    "dataloader_multiprocessing_context": {
        "dataloader_num_workers": 1,
        "dataloader_multiprocessing_context": "fork",
    },
}
ELSEWHERE = {  # field: where it is tested
    "output_dir": "tests/training/test_run.py",
    "bf16": "test_arguments.py, TestPrecision",
    "fp16": "test_arguments.py, TestPrecision",
    "use_cpu": "test_arguments.py, TestPrecision",
    "dataloader_pin_memory": "test_arguments.py, TestPrecision",
    "logging_steps": "test_trainer.py",
    "disable_tqdm": "test_trainer.py",
    "per_device_eval_batch_size": "test_trainer.py",
    "greater_is_better": "test_trainer.py",
    "report_to": "below",
    **dict.fromkeys(REPORTS, "below"),
    # passed on as they are to torch, for a compiler, a GPU or several machines
    **dict.fromkeys(("torch_compile_mode", "tf32", "log_on_each_node", "log_level_replica"), "transformers"),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"), "test_launch.py"),
    **dict.fromkeys(("ddp_static_graph", "ddp_backend", "ddp_timeout", "full_determinism"), "test_launch.py"),
}
OTHER_VALUES = {
    "include_num_input_tokens_seen": "all",
    "include_for_metrics": ["loss"],
    "train_sampling_strategy": "sequential",
    "do_eval": True,  # transformers completes it
}
KNOWN = {field.name: field for field in fields(TrainingArguments)}


def test_every_field_has_its_place():
    groups = [OTHER_WEIGHTS, SAME_WEIGHTS, ELSEWHERE, REFUSED, FIXED]
    assert set(KNOWN) - set().union(*groups) == set()
    assert not [name for name in KNOWN if sum(name in group for group in groups) > 1]


def weights_after(make_trainer, **changes):
    trainer = make_trainer(plain_model(), **changes)
    trainer.train_from(None)
    return trainer, trainer.model.state_dict()


@pytest.fixture(scope="module")
def default_weights(make_trainer):
    return weights_after(make_trainer)[1]


def is_same(weights, expected):
    return all(torch.equal(value, expected[name]) for name, value in weights.items())


@pytest.mark.parametrize("name", [name for name in OTHER_WEIGHTS if name in KNOWN])
def test_trains_otherwise(make_trainer, default_weights, name):
    assert not is_same(weights_after(make_trainer, **OTHER_WEIGHTS[name])[1], default_weights)


@pytest.mark.parametrize("name", [name for name in SAME_WEIGHTS if name in KNOWN])
def test_trains_the_same(make_trainer, default_weights, name):
    weights = weights_after(make_trainer, **SAME_WEIGHTS[name])[1]
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in default_weights.items()
    }
    for key, value in default_weights.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_when_it_logs_validates_and_saves(make_trainer):
    trainer, _ = weights_after(
        make_trainer,
        num_train_epochs=3,
        logging_strategy="steps",
        logging_steps=4,
        logging_first_step=True,
        eval_strategy="epoch",
        eval_delay=2,
    )
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 4, 8]
    assert [entry["step"] for entry in history if "eval_dice" in entry] == [6, 9]


@pytest.mark.parametrize("name", [name for name in REFUSED if name in KNOWN])
def test_refused_with_what_to_use(tmp_path, name):
    default = getattr(RunArguments(output_dir=str(tmp_path)), name)
    value = OTHER_VALUES.get(name, not default if isinstance(default, bool) or default is None else 3)
    with pytest.raises(UserError, match=f"{name} can't be set: ...") as error:
        RunArguments(output_dir=str(tmp_path), **{name: value})
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", ["label_smoothing_factor", "data_seed"])
def test_refused_in_a_recipe(tmp_path, name):
    (tmp_path / "mine.yaml").write_text(f"{name}: 1\n")
    with pytest.raises(UserError, match=f"{name} can't be set"):
        parse([str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize("name", [name for name in WORKERS if name in KNOWN])
def test_workers_fields_need_workers(name):
    with pytest.raises(UserError, match=f"{name} needs workers: set dataloader_num_workers"):
        parse([f"--{name}", {"dataloader_multiprocessing_context": "fork"}.get(name, "1")])


def test_a_report_that_is_not_installed():
    with pytest.raises(UserError, match="report_to nosuch is unknown or not installed"):
        parse(["--report_to", "nosuch"])


@pytest.mark.parametrize("name", [name for name in REPORTS if name in KNOWN])
def test_fields_of_reports_need_one(name):
    with pytest.raises(UserError, match=f"{name} is for report_to"):
        parse([f"--{name}", "x"])


def test_metric_that_no_validation_gives():
    with pytest.raises(UserError, match="metric_for_best_model must be one of dice, iou, .* got 'dise'"):
        parse(["--metric_for_best_model", "dise"])


def test_best_by_another_metric_keeps_the_dice_under_its_name(make_trainer):
    trainer, _ = weights_after(make_trainer, metric_for_best_model="loss", greater_is_better=False, num_train_epochs=2)
    best = trainer.load_best()
    evaluations = {entry["step"]: entry for entry in trainer.state.log_history if "eval_dice" in entry}
    assert best["dice"] == evaluations[best["step"]]["eval_dice"] and best["step"] == min(
        evaluations, key=lambda step: evaluations[step]["eval_loss"]
    )
