"""training/run.py from its command line to the folder it leaves, and what it says to wrong input."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hub_unets.hub_repos.repository.builder import build
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.records.drawing import GREEN
from hub_unets.training.records.results import read_history, read_results
from hub_unets.training.run import log_scoring, save_checkpoint
from tests.training import runs
from tests.training.runs import run
from tests.variants import small_model

PICTURES = {"first_batch.png", "curves.png", "thresholds.png", "reliability.png", "typical.png", "worst.png"}
LEFT = {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "results.json",
    "per_image.csv",
    "data_digests.csv",
    "scorings.log",
}
RECIPE = """
model: {base_channels: 4, depth: 2}
data: phantoms?count=12&size=64&seed=0
split: own
image_size: 64
precision: fp32
num_train_epochs: 2
per_device_train_batch_size: 4
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of a recipe in a fresh interpreter: (its folder, how it ended)."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(RECIPE)
    command = [sys.executable, "training/run.py", str(folder / "tiny.yaml"), "--output_dir", str(folder / "out")]
    environment = {**runs.os.environ, **runs.SERVER_ENVIRONMENT}
    return folder, subprocess.run(command, cwd=runs.ROOT, env=environment, capture_output=True, text=True)


def test_leaves_what_a_repository_is_built_from(ended):
    folder, result = ended
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (folder / "out").iterdir()} >= LEFT | PICTURES
    results = read_results(folder / "out/results.json")
    assert results["metrics"]["test"]["images"] == 3 and results["metrics"]["validation"]["images"] == 2
    best = results["run"]["best"]
    assert results["metrics"]["validation"]["per_image"]["dice"]["value"] == pytest.approx(best["dice"], abs=1e-6)
    assert len((folder / "out/per_image.csv").read_text().splitlines()) == 6
    UNetForSemanticSegmentation.from_pretrained(folder / "out")
    for picture in PICTURES:
        Image.open(folder / "out" / picture).verify()


def test_is_quiet(ended):
    _, result = ended
    for noise in ("Warning", "Writing model shards", "Loading weights", "Traceback"):
        assert noise not in result.stdout + result.stderr


def test_finished_run_scores_nothing_again(ended):
    folder, _ = ended
    scorings = (folder / "out/scorings.log").read_text()
    assert [line.split()[1] for line in scorings.splitlines()] == ["validation", "test"]
    before = (folder / "out/results.json").stat().st_mtime_ns
    argv = [str(folder / "tiny.yaml"), "--output_dir", str(folder / "out")]
    repeated = runs.finish(runs.start(argv))
    assert repeated.code == 0 and "is finished" in repeated.stdout and "Dice" in repeated.stdout
    assert (folder / "out/scorings.log").read_text() == scorings
    lock = read_results(folder / "out/results.json")["lock"]
    assert (lock["scorings"], lock["earlier"]) == (1, [])
    assert f"{lock['time']} test 3 images lock {lock['sha256']} family unet recipe {lock['recipe']}" in scorings
    assert (folder / "out/results.json").stat().st_mtime_ns == before


def test_three_classes_from_black_and_white_masks(tmp_path):
    names = "{0: background, 1: polyp, 2: boundary}"
    fields = {"model.num_labels": 3, "model.id2label": names, "loss.ce": 1, "boundary_width": 3}
    finished = run(tmp_path / "run", draws=True, **fields)
    assert finished.code == 0, finished.stderr
    results = read_results(tmp_path / "run/results.json")
    assert results["data"]["boundary_width"] == 3
    for part in ("validation", "test"):
        per_class = results["metrics"][part]["per_class"]
        assert [metrics["label"] for metrics in per_class] == ["polyp", "boundary"]
        assert f"{per_class[1]['present']['dice']['value']:.4f}" in finished.stdout
    validation = results["metrics"]["validation"]["per_image"]["dice"]["value"]
    assert validation == pytest.approx(results["run"]["best"]["dice"], abs=1e-6)
    with (tmp_path / "run/per_image.csv").open() as file:
        for row in csv.DictReader(file):
            assert int(row["true_positives_2"]) + int(row["false_negatives_2"]) > 0
    assert UNetForSemanticSegmentation.from_pretrained(tmp_path / "run").config.label2id["boundary"] == 2
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == PICTURES - {"thresholds.png", "reliability.png"}
    picture = np.asarray(Image.open(tmp_path / "run/typical.png"))
    height, width = picture.shape[:2]
    truths = picture[: int(0.8 * height), int(0.38 * width) : int(0.56 * width)]  # the second of four columns
    assert (truths == GREEN).all(axis=-1).sum() > 100  # label 2


def test_check_data_trains_nothing_and_leaves_no_folder(tmp_path):
    checked = run(tmp_path / "run", check_data="true")
    assert checked.code == 0 and "empty masks" in checked.stdout
    assert not (tmp_path / "run").exists()


def test_stopped_in_the_middle_of_an_epoch_is_validated_and_scored(tmp_path):
    assert run(tmp_path / "run", max_steps=1, per_device_train_batch_size=4).code == 0
    assert read_results(tmp_path / "run/results.json")["run"]["best"]["step"] == 1


def test_without_validation_during_training_the_last_weights_are_scored(tmp_path):
    ended = run(tmp_path / "run", eval_strategy="no", ema_decay=0.5)
    assert ended.code == 0, ended.stderr
    assert read_results(tmp_path / "run/results.json")["run"]["best"] is None


@pytest.fixture
def data(tmp_path):
    """A folder of six frames; the third one's file is cut short."""
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for index in range(6):
        image, mask = phantom(0, index, 64)
        Image.fromarray(image).save(tmp_path / f"data/images/frame{index}.jpg")
        Image.fromarray(mask).save(tmp_path / f"data/masks/frame{index}.png")
    cut = tmp_path / "data/images/frame2.jpg"
    cut.write_bytes(cut.read_bytes()[:400])
    return tmp_path / "data"


def test_truncated_image_is_named(tmp_path, data):
    ended = run(tmp_path / "run", data=data, split="80/10/10")
    assert_one_error(ended, "frame2")


def test_check_data_reads_the_labels_as_training_does(tmp_path, data):
    mask = data / "masks/frame4.png"
    Image.fromarray(np.asarray(Image.open(mask)) // 127).save(mask)  # labels 0 and 2
    fields = {"data": data, "split": "80/10/10", "check_data": "true"}
    for options, bad in (({"model.num_labels": 3}, 1), ({"model.num_labels": 3, "boundary_width": 3}, 2)):
        assert f"of them bad: {bad}\n" in run(tmp_path / "run", **fields, **options).stdout
    assert_one_error(run(tmp_path / "run", boundary_width=3, **fields), "num_labels=2")


def test_empty_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_error(run(tmp_path / "run", data=tmp_path / "empty"), "empty")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.backbone": "resnet81", "model.base_channels": None, "model.depth": None}, "resnet81"),
        ({"model.padding": "valid", "image_size": 33}, "padding='valid'"),
        ({"data": "nowhere"}, "nowhere"),
        ({"loss.ce": 1}, "loss ce"),
        ({"augmentation": "[{HorizontalFlop: {p: 0.5}}]"}, "HorizontalFlip"),
        ({"ema_decay": 2}, "ema_decay"),
        ({"boundary_width": 3}, "boundary_width=3 needs three labels (background, polyp, boundary), got num_labels=2"),
        ({"model.num_labels": 3, "boundary_width": 0}, "boundary_width must be at least 1 pixel"),
        ({"model.id2label": "{0: polyp, 1: polyp}"}, "id2label"),
        ({"save_total_limit": 1}, "save_total_limit"),
        ({"calibrate": "true", "model.binary_head": "false"}, "calibrate=True needs a binary head"),
        ({"split": "pranet"}, "pranet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_input_is_one_line(tmp_path, fields, message):
    assert_one_error(run(tmp_path / "run", **fields), message)


def assert_one_error(ended, message):
    assert ended.code == 1 and "Traceback" not in ended.stderr, ended
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert message in line, line


def test_results_hold_the_command_and_the_settings(ended):
    folder, _ = ended
    written = json.loads((folder / "out/results.json").read_text())["run"]
    assert written["command"].startswith("accelerate launch training/run.py")
    assert written["settings"]["num_train_epochs"] == "2" and written["parameters"] > 0


def test_calibrate_keeps_temperature_and_threshold(tmp_path):
    ended = {name: run(tmp_path / name, calibrate=name) for name in ("false", "true")}
    assert [process.code for process in ended.values()] == [0, 0], ended["true"].stderr
    plain, fitted = (read_results(tmp_path / name / "results.json") for name in ("false", "true"))
    assert "calibration" not in plain
    record, validation = fitted["calibration"], fitted["metrics"]["validation"]
    processor = json.loads((tmp_path / "true/preprocessor_config.json").read_text())
    assert (record["threshold"], record["score_threshold"]) == (
        processor["mask_threshold"], processor["score_threshold"]
    )  # fmt: skip
    assert record["dice_after"] == pytest.approx(validation["per_image"]["dice"]["value"], abs=1e-12)
    assert record["dice_before"] == plain["metrics"]["validation"]["per_image"]["dice"]["value"]
    assert record["loss_before"] == plain["metrics"]["validation"]["loss"]["value"]
    assert record["loss_after"] == validation["loss"]["value"]
    for row, expected in zip(record["by_size"], validation["by_size"], strict=True):
        assert (row["images"], row["dice_after"]) == (expected["images"], expected["dice"]["value"])
    befores = [row["recall_before"] for row in record["by_size"]]
    assert befores == [row["recall"]["value"] for row in plain["metrics"]["validation"]["by_size"]]
    heads = [
        UNetForSemanticSegmentation.from_pretrained(tmp_path / name).head.classifier.weight
        for name in ("false", "true")
    ]
    torch.testing.assert_close(heads[1], heads[0] / record["temperature"])
    lines = (tmp_path / "true/scorings.log").read_text().splitlines()
    assert [line.split(" lock ")[0].split(" ", 1)[1] for line in lines] == [
        "validation 3 images to calibrate", "test 5 images"
    ]  # fmt: skip


def test_half_precision_is_what_is_stored_and_scored(tmp_path):
    ended = run(tmp_path / "run", calibrate="true", half_precision="true", score_test="false", draws=True)
    assert ended.code == 0, ended.stderr
    stored = load_file(tmp_path / "run/model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.float16", "torch.int64"}
    model = UNetForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    results = read_results(tmp_path / "run/results.json")
    validation = results["metrics"]["validation"]
    assert set(results["metrics"]) == {"validation"}
    assert results["calibration"]["dice_after"] == pytest.approx(validation["per_image"]["dice"]["value"], abs=1e-12)
    assert results["calibration"]["loss_after"] == validation["loss"]["value"]
    assert "test" not in (tmp_path / "run/scorings.log").read_text()
    assert {path.name for path in (tmp_path / "run").iterdir()} >= PICTURES
    modes = {path.stat().st_mode for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "run/results.json").stat().st_mode}  # weights and checkpoints too
    build(tmp_path / "run", tmp_path / "repository")
    assert "**Not scored on a test part**" in (tmp_path / "repository" / "README.md").read_text(encoding="utf-8")


def test_training_samples_may_have_a_size_of_their_own(tmp_path):
    sizes = {"own": (48, 32), "small": (32, None), "large": (48, None)}
    losses = {}
    for name, (image_size, train_size) in sizes.items():
        fields = {"image_size": image_size, "train_size": train_size, "num_train_epochs": 1, "logging_steps": 1}
        assert run(tmp_path / name, **fields).code == 0
        history = read_history(tmp_path / name, {})
        losses[name] = [next(entry[key] for entry in history if key in entry) for key in ("loss", "eval_loss")]
    assert losses["own"][0] == losses["small"][0] != losses["large"][0]
    assert losses["own"][1] not in (losses["small"][1], losses["large"][1])
    assert json.loads((tmp_path / "own/preprocessor_config.json").read_text())["size"] == {"height": 48, "width": 48}


def test_training_samples_may_grow(tmp_path):
    losses = {}
    for name, fields in {"growing": {"first_train_size": 16}, "small": {"train_size": 16}, "large": {}}.items():
        fields = {"image_size": 32, "copies": 2, "num_train_epochs": 4, "logging_strategy": "epoch", **fields}
        assert run(tmp_path / name, **fields).code == 0
        losses[name] = [entry["loss"] for entry in read_history(tmp_path / name, {}) if "loss" in entry]
    differences = {name: abs(losses["growing"][0] - losses[name][0]) for name in ("small", "large")}
    assert 0 < differences["small"] < differences["large"]  # both 16 pixels wide, made from 32 and from the original
    assert losses["growing"][3] != losses["large"][3]


def normal_frames(folder, count=8):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (50, 70, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


def test_frames_without_a_polyp_are_trained_on_too(tmp_path):
    ended = run(tmp_path / "run", negatives=normal_frames(tmp_path / "normal"), num_train_epochs=1)
    assert ended.code == 0, ended.stderr
    results = read_results(tmp_path / "run" / "results.json")
    plain = run(tmp_path / "plain", num_train_epochs=1)
    assert plain.code == 0, plain.stderr
    steps = [read_history(tmp_path / name, {})[-1]["step"] for name in ("run", "plain")]
    assert steps[0] == steps[1] + 1  # 8 frames are one more batch
    assert results["run"]["settings"]["negatives"] == "normal"
    assert results["data"]["sizes"] == read_results(tmp_path / "plain" / "results.json")["data"]["sizes"]


def test_a_test_image_may_not_be_a_negative(tmp_path):
    data, normal = tmp_path / "data", normal_frames(tmp_path / "normal", 1)
    for part in ("train", "test"):
        for number in range(4):
            image, mask = phantom(5, number + 10 * (part == "test"), 64)
            for kind, pixels in (("images", image), ("masks", mask)):
                (data / part / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(data / part / kind / f"{part}{number}.png")
    (normal / "x.png").write_bytes((data / "test" / "images" / "test2.png").read_bytes())
    ended = run(tmp_path / "run", data=data, negatives=normal)
    assert ended.code == 1
    assert "error: negatives: x.png" in ended.stderr and "is a validation or test image of data" in ended.stderr


class TestDistillation:
    @pytest.fixture
    def teacher(self, tmp_path):
        assert run(tmp_path / "teacher", num_train_epochs=1).code == 0
        return tmp_path / "teacher"

    def test_an_epoch_shows_the_unlabelled_frames_too_and_the_record_names_the_teacher(self, tmp_path, teacher):
        frames = normal_frames(tmp_path / "frames")
        ended = run(tmp_path / "run", teacher=teacher, unlabelled=frames, teacher_flips="true", num_train_epochs=1)
        assert ended.code == 0, ended.stderr
        record = read_results(tmp_path / "run/results.json")["run"]
        steps = [read_history(tmp_path / name, {})[-1]["step"] for name in ("run", "teacher")]
        assert steps[0] == steps[1] + 1  # 8 frames are one more batch
        assert record["teacher"] == ["teacher"] and record["settings"]["unlabelled"] == "frames"
        weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "teacher")]
        assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_its_weight_counts(self, tmp_path, teacher):
        for weight in (0.001, 5):
            ended = run(tmp_path / f"{weight}", teacher=teacher, teacher_weight=weight, logging_steps=1, max_steps=1)
            assert ended.code == 0, ended.stderr
        low, high = (read_history(tmp_path / name, {})[0]["loss"] for name in ("0.001", "5"))
        assert high > low + 1  # 5 nats a pixel times a cross-entropy of about .7

    def test_refused(self, tmp_path):
        ended = run(tmp_path / "run", unlabelled=normal_frames(tmp_path / "frames"))
        assert ended.code == 1 and "unlabelled frames teach nothing by themselves: name a teacher" in ended.stderr
        ended = run(tmp_path / "run", teacher=tmp_path / "nothing")
        assert ended.code == 1 and "nothing: no folder with a config.json" in ended.stderr


@pytest.mark.parametrize(
    ("sent", "code", "message"), [("SIGINT", 130, "stopped:"), ("SIGTERM", 143, "stopped by SIGTERM:")]
)
def test_a_run_that_is_told_to_stop_says_so_in_one_line(tmp_path, sent, code, message):
    ended = run(tmp_path / "run", ("after_step", 4, sent), dataloader_num_workers=1)
    assert ended.code == code
    lines = [line for line in ended.stderr.splitlines() if line and "%|" not in line]  # without progress bars
    assert lines == [f"{message} repeat the command to go on."]
    assert run(tmp_path / "run").code == 0


def test_a_run_that_diverges_says_at_which_step_and_keeps_its_checkpoint(tmp_path):
    ended = run(tmp_path / "run", learning_rate=1e30, optim="sgd", max_grad_norm=0, warmup_steps=3)
    assert_one_error(ended, "training diverged at step ")
    assert "Lower learning_rate (it is 1e+30)" in ended.stderr
    assert not (tmp_path / "run/results.json").exists()


def test_a_path_of_the_machine_is_in_no_record(tmp_path, data):
    for number in range(12):
        image, mask = phantom(1, number, 64)
        Image.fromarray(image).save(data / f"images/frame{number}.jpg")
        Image.fromarray(mask).save(data / f"masks/frame{number}.png")
    argv = runs.arguments(tmp_path / "run", split="80/10/10", num_train_epochs=1, data=None)
    ended = runs.finish(runs.start([*argv, f"--data={data}"]))
    assert ended.code == 0, ended.stderr
    text = (tmp_path / "run/results.json").read_text()
    assert str(tmp_path) not in text and str(tmp_path.parent) not in text
    assert json.loads(text)["run"]["settings"]["data"] == "data"
    assert "--data data " in json.loads(text)["run"]["command"] + " "


def test_half_precision_keeps_what_float16_cant_hold(tmp_path):
    torch.manual_seed(0)
    model = small_model(base_channels=4, depth=2)
    norm = next(layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    norm.running_var[0] = 1e5
    save_checkpoint(model, UNetImageProcessor(size=32), tmp_path, half_precision=True)
    stored = load_file(tmp_path / "model.safetensors")
    assert [str(tensor.dtype) for tensor in stored.values()].count("torch.float32") == 1
    loaded = UNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert max(layer.running_var.max() for layer in loaded.modules() if isinstance(layer, torch.nn.BatchNorm2d)) == 1e5
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values() if tensor.is_floating_point())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_at_the_log_of_scorings_is_named(tmp_path):
    (tmp_path / "scorings.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"scorings.log can't be written \(No space left on device\); .* make room"):
        log_scoring(tmp_path, "test", 5)
