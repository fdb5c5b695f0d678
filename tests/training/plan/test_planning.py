"""A run without a recipe, from its command line to the folder it leaves."""

import json

import numpy as np
import pytest
from PIL import Image

from hub_unets.training.data.phantoms import phantom
from hub_unets.training.errors import UserError
from hub_unets.training.plan.planning import is_planned, require_planned
from hub_unets.training.records.results import read_results
from hub_unets.training.settings.arguments import parse
from hub_unets.training.settings.recipes import read_recipe
from hub_unets.training.settings.run_arguments import RunArguments
from hub_unets.training.settings.trials import parse_sweep
from tests.training import runs

TINY = {
    "data": "phantoms?count=30&size=64&seed=0",
    "num_train_epochs": 1,
    "copies": 1,
    "image_size": 64,
    "model.backbone": "test_resnet",
    "backbone_weights": "none",
    "precision": "fp32",
    "disable_tqdm": "true",
}


def started(folder, *further, **changes):
    """A planned run to its end; a change to None leaves a field out."""
    fields = TINY | {name.replace("__", "."): value for name, value in changes.items()} | {"output_dir": folder}
    argv = [text for name, value in fields.items() if value is not None for text in (f"--{name}", str(value))]
    return runs.finish(runs.start([*argv, *further]))


def error_of(finished):
    assert finished.code == 1 and finished.stderr.count("error: ") == 1 and "Traceback" not in finished.stderr
    return finished.stderr[finished.stderr.index("error: ") :]


def pairs_folder(folder, count=12, size=64):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, mask = phantom(0, number, size)
        Image.fromarray(image).save(folder / f"images/{number:02d}.png")
        Image.fromarray(mask).save(folder / f"masks/{number:02d}.png")
    return folder


@pytest.mark.parametrize(
    ("line", "planned"),
    [
        ("--data my-data", True),
        ("--data my-data --plan-only --image_size 320 --model.backbone resnet50 --model.num_labels 3", True),
        ("", True),
        ("unet_polyps --data my-data", False),
        ("--data my-data --start_from runs/more", False),
        ("--data my-data --variant resunet", False),
        ("--data my-data --model.base_channels 8", False),
        ("--data my-data --check_data true", False),
        ("--help", False),
        ("-h", False),
    ],
)
def test_what_is_planned(line, planned):
    assert is_planned(line.split()) is planned


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned") / "run"
    return folder, started(folder)


def test_trains_by_its_plan(ended):
    folder, finished = ended
    assert finished.code == 0, finished.stderr
    results = read_results(folder / "results.json")
    settings = results["run"]["settings"]
    plan = read_recipe(folder / "plan.yaml")
    assert (settings["image_size"], settings["model.backbone"], settings["split"]) == ("64", "test_resnet", "own")
    assert plan["num_train_epochs"] == 1 and plan["learning_rate"] == 2e-3 and plan["per_device_train_batch_size"] == 8
    assert results["run"]["command"].startswith("accelerate launch training/run.py plan.yaml --data 'phantoms?")
    said = finished.stdout.splitlines()
    start = next(number for number, line in enumerate(said) if line.startswith("Plan, with a reason")) + 1
    assert [line.split()[0].rstrip(":") for line in said[start : start + 10]] == [
        "data", "hardware", "split", "encoder", "image_size", "batch", "epochs", "loss", "augmentation", "calibrate",
    ]  # fmt: skip
    assert said[start + 10].startswith("Split own: 30 train")


def test_repeated_it_goes_on_with_the_same_plan(ended):
    folder, _ = ended
    before = (folder / "plan.yaml").read_text()
    repeated = started(folder)
    assert repeated.code == 0 and "as it is" in repeated.stdout and "is finished" in repeated.stdout
    assert (folder / "plan.yaml").read_text() == before
    assert "was made for other options" in error_of(started(folder, learning_rate=1e-4))


@pytest.mark.long
def test_a_stopped_run_resumes_by_its_plan(tmp_path):
    fields = TINY | {"data": "phantoms?count=8&size=64", "num_train_epochs": 2, "output_dir": tmp_path / "run"}
    argv = [text for name, value in fields.items() for text in (f"--{name}", str(value))]
    assert runs.finish(runs.start(argv, moment=("after_step", 2))).code != 0
    resumed = runs.finish(runs.start(argv))
    assert resumed.code == 0 and "Resumed from" in resumed.stdout and "Plan, with" not in resumed.stdout


def test_plan_only_stops_there_and_the_plan_is_a_recipe(tmp_path):
    finished = started(tmp_path / "run", "--plan-only", learning_rate=5e-4, model__id2label="{0: nothing, 1: lesion}")
    assert finished.code == 0, finished.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["plan.yaml"]
    text = (tmp_path / "run/plan.yaml").read_text()
    assert "learning_rate: 0.0005  # given; the plan: 0.002" in text
    assert parse_sweep([str(tmp_path / "run/plan.yaml"), "--folds", "5"]).folds == 5
    arguments, model, loss, _ = parse([str(tmp_path / "run/plan.yaml")])
    assert (arguments.learning_rate, arguments.output_dir) == (5e-4, "runs/plan")
    assert model["id2label"] == {"0": "nothing", "1": "lesion"} and loss == {"bce": 1, "dice": 1}


def test_plan_only_needs_something_to_plan(tmp_path):
    assert "plan_only is for a command without a recipe" in error_of(started(tmp_path, "--plan-only", variant="unet"))
    require_planned(["unet_polyps", "--plan_only", "false"])
    with pytest.raises(UserError, match="plan_only"):
        require_planned(["unet_polyps", "--plan-only"])


def test_a_plan_is_edited_and_data_that_changed_are_refused(tmp_path):
    data = pairs_folder(tmp_path / "data")
    assert started(tmp_path / "run", "--plan-only", data=data).code == 0
    path = tmp_path / "run/plan.yaml"
    path.write_text(path.read_text().replace("num_train_epochs: 1", "weight_decay: 0.01"))
    Image.fromarray(phantom(1, 0, 64)[0]).save(data / "images/00.png")
    assert "before the data in" in error_of(started(tmp_path / "run", "--plan-only", data=data))
    assert "weight_decay: 0.01" in path.read_text()


def test_a_folder_of_a_run_with_a_recipe_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"image_size": "64"}))
    assert "holds a run without a plan" in error_of(started(tmp_path))


def test_three_classes_get_their_labels_and_a_plain_network(tmp_path):
    data = pairs_folder(tmp_path / "data")
    for number, path in enumerate(sorted((data / "masks").iterdir())):
        mask = np.asarray(Image.open(path)) // 255
        Image.fromarray(mask * np.uint8(1 + number % 2)).save(path)
    network = {"model.backbone": None, "backbone_weights": None}
    assert started(tmp_path / "run", "--plan-only", data=data, **network).code == 0
    plan = read_recipe(tmp_path / "run/plan.yaml")
    assert (plan["model.num_labels"], plan["loss.ce"], plan["calibrate"]) == (3, 1.0, False)
    assert (plan["model.base_channels"], plan["model.depth"]) == (16, 5)


@pytest.mark.skipif(
    "intensity" not in RunArguments.__dataclass_fields__, reason="images are read as RGB of 8 bits alone"
)
def test_grey_images_of_sixteen_bits_keep_their_values(tmp_path):
    data = pairs_folder(tmp_path / "data")
    for path in (data / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path).convert("L")) * np.uint16(16)).save(path)
    finished = started(tmp_path / "run", data=data)
    assert finished.code == 0, finished.stderr
    plan = read_recipe(tmp_path / "run/plan.yaml")
    assert (plan["model.num_channels"], plan["intensity"]) == (1, {"percentiles": [0.5, 99.5]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "nowhere: no such file or folder"),
        (
            {"backbone_weights": "nowhere", "model.backbone": None},
            "backbone_weights: there is no file or folder nowhere",
        ),
        ({"model.backbone": "resnet81"}, "resnet81"),
        ({"augmentation": "[{HorizontalFlop: {p: 0.5}}]"}, "HorizontalFlip"),
        ({"model.num_labels": 2, "boundary_width": 3}, "boundary_width=3 needs three labels"),
        ({"image_sise": 64}, "did you mean image_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_plan_that_can_not_run_is_refused(tmp_path, changes, message):
    finished = started(tmp_path / "run", **changes)
    assert finished.code != 0 and message in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "run/plan.yaml").exists()


def test_a_split_that_can_not_be_made_is_refused(tmp_path):
    data = pairs_folder(tmp_path / "data", count=2)
    assert "2 images" in error_of(started(tmp_path / "run", data=data)) and not (tmp_path / "run").exists()


def test_parts_without_a_test_part_are_not_mixed(tmp_path):
    for part in ("train", "val"):
        for file in pairs_folder(tmp_path / "data" / part, size=32 * len(part)).glob("*/*.png"):
            file.rename(file.with_name(f"{part}{file.name}"))  # a stem is of one part
    error = error_of(started(tmp_path / "run", data=tmp_path / "data"))
    assert "the data have the parts train, validation" in error and "name --split" in error


def test_bad_pairs_are_named(tmp_path):
    data = pairs_folder(tmp_path / "data")
    (data / "images/03.png").write_bytes(b"no picture")
    assert "1 of 12 pairs can't be used: 03" in error_of(started(tmp_path / "run", data=data))
