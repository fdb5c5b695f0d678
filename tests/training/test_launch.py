"""One process and two: the same weights; and accelerate's launcher, for real."""

import functools
import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.samples import EvaluationSamples, cached_samples, collate
from hub_unets.training.data.sources import load_source
from hub_unets.training.fit.losses import WeightedSum
from hub_unets.training.records.results import read_results
from tests.training import runs
from tests.training.runs import run, run_in_two_processes, scratch

# 11 images, 8 a step: the last step of each epoch has 3
SETTINGS = {
    "model.batch_norm": "false",
    "data": "phantoms?count=11&size=64&seed=0",
    "augmentation": "[{HorizontalFlip: {p: 0.5}}]",
    "logging_steps": 1,
}


@functools.cache
def one_process():
    """The folder of the run with 1 x 8 images a step."""
    folder = scratch() / "one process"
    assert run(folder, per_device_train_batch_size=8, **SETTINGS).code == 0
    return folder


def assert_same_weights(found, expected):
    weights, others = (load_file(folder / "model.safetensors") for folder in (found, expected))
    for name, value in others.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize(("size", "accumulated"), [(4, 2), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_accumulation_ends_with_the_same_weights(tmp_path, size, accumulated):
    ended = run(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, **SETTINGS)
    assert ended.code == 0, ended.stderr
    assert_same_weights(tmp_path, one_process())


@pytest.mark.parametrize(("size", "accumulated"), [(2, 2), pytest.param(1, 4, marks=pytest.mark.slow)])
def test_two_processes_with_accumulation_end_with_the_same_weights(tmp_path, size, accumulated):
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, **SETTINGS}
    first, second = run_in_two_processes(tmp_path, **options)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert second.stdout == "" and "Warning" not in first.stderr + second.stderr
    assert_same_weights(tmp_path, one_process())


DISTRIBUTED = {
    "ddp_find_unused_parameters": "false",
    "ddp_bucket_cap_mb": 5,
    "ddp_broadcast_buffers": "false",
    "ddp_static_graph": "true",
    "ddp_backend": "gloo",
    "ddp_timeout": 120,
    "full_determinism": "true",
}


@pytest.mark.parametrize(
    "options", [{"ema_decay": 0.5}, pytest.param(DISTRIBUTED, marks=pytest.mark.long)], ids=["averaged", "plain"]
)
def test_two_processes_validate_the_network_that_they_save(tmp_path, options):
    """Batch norm's statistics differ between processes; the first one's are saved."""
    data = "phantoms?count=40&size=64&seed=0"
    settings = {**SETTINGS, "model.batch_norm": "true", "data": data, "per_device_eval_batch_size": 1}
    known = {field.name for field in fields(TrainingArguments)} | {"ema_decay"}
    options = {name: value for name, value in options.items() if name in known}
    ended = run_in_two_processes(
        tmp_path / "run", num_train_epochs=1, per_device_train_batch_size=2, **settings, **options
    )
    assert [process.code for process in ended] == [0, 0], ended
    results = read_results(tmp_path / "run/results.json")
    dice = results["metrics"]["validation"]["per_image"]["dice"]["value"]
    assert results["run"]["best"]["dice"] == pytest.approx(dice, abs=1e-6)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    (loss,) = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert loss == pytest.approx(validation_loss(tmp_path / "run", data, tmp_path), rel=1e-5)


def validation_loss(folder, data, cache):
    """The mean loss of the saved network over the validation images, as they are validated in training."""
    rows, partition = make_partition(load_source(data, None, None, None), "own", 42)
    processor = UNetImageProcessor.from_pretrained(folder)
    samples = cached_samples(rows, partition.digests, processor, 2, cache).select(partition.validation)
    model, loss = UNetForSemanticSegmentation.from_pretrained(folder).eval(), WeightedSum({"bce": 1, "dice": 1})
    items = [collate([item]) for item in map(EvaluationSamples(samples, processor).__getitem__, range(len(samples)))]
    with torch.no_grad():
        losses = [loss(model(item["pixel_values"]).logits, item["labels"]) for item in items]
    return float(torch.cat(losses).mean())


def launch(output_dir, **changes):
    """accelerate launch training/run.py, two processes"""
    options = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    changes = {**SETTINGS, "per_device_train_batch_size": 4, **changes}
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "training/run.py"]
    return subprocess.run(
        [*command, *runs.arguments(output_dir, **changes)],
        cwd=runs.ROOT,
        env={**runs.os.environ, **runs.SERVER_ENVIRONMENT},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_accelerate_launch_of_two_processes_ends_with_the_same_weights(tmp_path):
    ended = launch(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert '"processes": 2' in (tmp_path / "results.json").read_text()
    assert "Warning" not in ended.stderr and ended.stdout.count("Split own") == 1
    assert_same_weights(tmp_path, one_process())


@pytest.mark.slow
def test_error_that_only_the_first_process_finds_is_one_line(tmp_path):
    (tmp_path / "settings.json").write_text('{"learning_rate": "0.01"}')
    refused = launch(tmp_path, learning_rate=0.5)
    assert refused.returncode == 1
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "holds a run with" in errors[0], refused.stderr
    assert 'training/run.py", line' not in refused.stderr


def test_launch_that_would_start_one_process_instead_of_two_is_refused(tmp_path):
    ended = run(tmp_path / "run", environment={"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"})
    assert ended.code == 1 and "--multi_gpu" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()
