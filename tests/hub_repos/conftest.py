"""Runs' folders as training/run.py leaves them, with random weights: small, and made in a second."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import dynamic_module_utils

from hub_unets.hub_repos.repository.builder import build
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.data.reading import read_pair
from hub_unets.training.data.sources import load_source
from hub_unets.training.measure.calibration import calibrate
from hub_unets.training.measure.cost import gmacs
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from hub_unets.training.records.locks import lock_record, log_scoring, make_lock
from hub_unets.training.records.results import data_record, environment_record, read_results, write_results
from tests.variants import small_config

DATA = "phantoms?count=6&size=64&seed=0"
CALIBRATED_DATA = "phantoms?count=12&size=64&seed=0"


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """A function (variant, encoder, fields of the config) -> folder of a finished run; label 2 is a boundary."""

    def make(variant="unet", encoder="plain", **fields):
        folder = tmp_path_factory.mktemp("checkpoint") / "run"  # with no log of another beside it
        torch.manual_seed(0)
        model = find_variant(variant)[1](small_config(variant, encoder, **fields)).eval()
        processor = UNetImageProcessor(size=64, image_mean=[0.5] * 3, image_std=[0.25] * 3)
        _centre(model, processor)
        rows, partition = make_partition(load_source(DATA), "own")
        parts = {part: rows.select(getattr(partition, part)) for part in ("validation", "test")}
        width = 3 if model.config.num_labels == 3 else None
        task = Task.of_run(model.config, width)
        scores = {part: score(model, processor, part_rows, task) for part, part_rows in parts.items()}
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        settings = {"data": DATA} | {f"model.{name}": json.dumps(value) for name, value in fields.items()}
        run = {"name": f"{variant}-test", "model_type": variant, "settings": settings, "command": "a command"}
        results = {
            "lock": locked(folder, variant, settings, partition),
            "run": run | {"parameters": model.num_parameters(), "best": None, "seed": 0},
            "data": data_record(DATA, partition, width),
            "environment": environment_record(model),
            "cost": {"training_seconds": 1.0},
        }
        history = [{"epoch": 1.0, "step": 1, "eval_loss": 0.5, "eval_dice": 0.25, "eval_iou": 0.125}]
        write_results(folder, results, scores, partition.twins, history)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture(scope="session")
def three_class_checkpoint(make_checkpoint):
    return make_checkpoint(id2label={0: "background", 1: "polyp", 2: "boundary"})


def locked(folder, variant, settings, partition):
    """What results.json says of a run's first scoring of the test part."""
    lock = make_lock(variant, settings, 0, partition.seed, partition.sha256)
    log_scoring(folder, "test", len(partition.test), lock=lock)
    return lock_record(folder, lock)


def unscored(run, folder):
    """A copy of a run as one with `score_test: false` leaves it."""
    shutil.copytree(run, folder)
    results = read_results(folder / "results.json")
    lines = (folder / "per_image.csv").read_text().splitlines(keepends=True)
    (folder / "per_image.csv").write_text("".join(line for line in lines if ",test," not in line))
    lines = (folder / "data_digests.csv").read_text().splitlines(keepends=True)
    (folder / "data_digests.csv").write_text("".join(line for line in lines if ",test," not in line))
    del results["lock"]
    results["metrics"] = {"validation": results["metrics"]["validation"]}
    results["run"]["settings"]["score_test"] = "False"
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return folder


@pytest.fixture(scope="session")
def repository(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "repository"
    build(checkpoint, folder)
    return folder


@pytest.fixture
def copy(repository, tmp_path):
    """A built repository that a test may change."""
    return shutil.copytree(repository, tmp_path / "copy")


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    """transformers' cache of remote code in a folder of the test's own, for code that is loaded in this process."""

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    forget()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    # earlier loads have left their own cache folders in the path
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "transformers_modules").is_dir()])
    yield
    forget()


@torch.no_grad()
def _centre(model, processor):
    """Shift the last biases until every class has its pixels: masks neither empty nor full."""
    image, _ = phantom(7, 0, 64)
    model.head.classifier.bias -= model(**processor(image)).logits[0].flatten(1).median(dim=1).values


@pytest.fixture(scope="session")
def calibrated_checkpoint(make_checkpoint, tmp_path_factory):
    """A run whose head was calibrated and whose crops without a polyp were scored; with every figure of a card."""
    run, folder = make_checkpoint(), tmp_path_factory.mktemp("calibrated") / "run"
    model, processor = load_model(run)
    results = read_results(run / "results.json")
    rows, partition = make_partition(load_source(CALIBRATED_DATA), "own")
    _fit_head(model, processor, rows.select(partition.train[:4]))
    fitted = calibrate(model, processor, rows.select(partition.validation))
    tested = score(model, processor, rows.select(partition.test), crops=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    results["run"]["settings"]["data"] = CALIBRATED_DATA
    best = {"step": 1, "epoch": 1.0, "dice": fitted.record["dice_before"] + 0.001}
    results["run"] |= {"best": best, "gmacs": round(gmacs(model, 64), 4)}
    results["cost"]["latency"] = {"p50": 41.6, "p95": 77.7, "images": 20, "threads": 2}
    results |= {"data": data_record(CALIBRATED_DATA, partition), "calibration": fitted.record}
    results["lock"] = locked(folder, "unet", results["run"]["settings"], partition)
    history = [{"epoch": 1.0, "step": 1, "eval_loss": 0.5, "eval_dice": 0.25, "eval_iou": 0.125}]
    write_results(folder, results, {"validation": fitted.scores, "test": tested}, partition.twins, history)
    return folder


@torch.no_grad()
def _fit_head(model, processor, rows):
    """The head's last convolution by least squares on what it sees of some images: logits that know something."""
    seen, wanted = [], []
    hook = model.head.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0]))
    for row in rows:
        image, labels = read_pair(row)
        model(**processor(image))
        labels = torch.from_numpy(np.array(labels, np.float32))[None, None]
        wanted.append(F.interpolate(labels, seen[-1].shape[-2:]).flatten())
    hook.remove()
    features = torch.cat([inside.flatten(1) for inside in seen], dim=1).T
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    *weights, bias = torch.linalg.lstsq(features, 8 * torch.cat(wanted)[:, None] - 1).solution.flatten()
    model.head.classifier.weight.copy_(torch.stack(weights).reshape(model.head.classifier.weight.shape))
    model.head.classifier.bias.fill_(bias)
