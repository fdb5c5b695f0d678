import csv
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from hub_unets.hub_repos import verify
from hub_unets.hub_repos.checks import verification
from hub_unets.hub_repos.checks.check import Check, checked
from hub_unets.hub_repos.checks.isolated import SECONDS, most_memory
from hub_unets.hub_repos.checks.reproduce import REPORT, _compare_report
from hub_unets.hub_repos.checks.verification import STATIC_CHECKS, Static, limited_memory, run_isolated, verify_folder
from hub_unets.hub_repos.publish.remote import CLIENT
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.card import Standing, write_card
from hub_unets.hub_repos.verify import main
from hub_unets.training.data.sources import load_source
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.locks import make_lock
from hub_unets.training.records.results import write_results
from tests.hub_repos.conftest import DATA, unscored
from tests.variants import VARIANTS

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def copy(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "copy")


def failures(folder, **options):
    return {check.name: check.reason for check in verify_folder(folder, **options) if not check.passed}


def sign(folder):
    """Make the manifest fit again, as whoever changes a repository can."""
    manifest = json.loads((folder / "manifest.json").read_text())
    unlisted = ("manifest.json", ".gitattributes")
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in unlisted}
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(name, pattern, replacement):
    """A change of one text of a file."""

    def change(folder):
        text, count = re.subn(pattern, replacement, (folder / name).read_text(), count=1, flags=re.MULTILINE)
        assert count == 1
        (folder / name).write_text(text)

    return change


def edit_json(name, render=False, **changes):
    """A change of a JSON file's values; keys are paths joined by __. `render` writes the card anew."""

    def change(folder):
        content = json.loads((folder / name).read_text())
        for dotted, value in changes.items():
            *parents, field = dotted.split("__")
            holder = content
            for parent in parents:
                holder = holder[parent]
            holder[field] = value
        (folder / name).write_text(json.dumps(content))
        if render:
            write_card(folder, json.loads((folder / "results.json").read_text()))

    return change


def lock_anew(folder):
    """The lock of the settings as they are now, as whoever changes them can make it."""
    results = json.loads((folder / "results.json").read_text())
    run, data = results["run"], results["data"]
    lock = make_lock(run["model_type"], run["settings"], run["seed"], data["split_seed"], data["sha256"])
    edit_json("results.json", render=True, lock__recipe=lock.recipe, lock__sha256=lock.sha256)(folder)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("head.classifier.bias")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def forged_size(folder):
    """Another row of the card's table by size, perfect."""
    results = json.loads((folder / "results.json").read_text())
    rows = results["metrics"]["test"]["by_size"]
    perfect = {"value": 1.0, "low": 1.0, "high": 1.0}
    rows.append(rows[-1] | {"dice": perfect, "recall": perfect})
    edit_json("results.json", render=True, metrics__test__by_size=rows)(folder)


def forged_class(folder):
    """A table of classes, which a binary head has not."""
    metrics = json.loads((folder / "results.json").read_text())["metrics"]["test"]
    perfect = {"value": 1.0, "low": 1.0, "high": 1.0}
    class_metrics = {"label": "polyp", "present": {"images": 1, "dice": perfect}}
    class_metrics |= {kind: dict.fromkeys(metrics[kind], perfect) for kind in ("per_image", "pooled")}
    edit_json("results.json", render=True, metrics__test__per_class=[class_metrics])(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("touch planted",)


UNET = "modeling_unet.UNetForSemanticSegmentation"
CONFIG = {"config"}
NAMES = "card names this repository"
TAMPERED = {
    "figure in the card": (edit("README.md", r"^(\| test .* \| 0\.\d\d\d)\d", r"\g<1>x"), {"card"}),
    "figure in the metadata": (edit("README.md", r"value: 0\.\d+", "value: 0.9999"), {"card"}),
    "another library": (edit("README.md", "library_name: .*", "library_name: diffusers"), {"card"}),
    "words after the card": (edit("README.md", r"\Z", "\nmore"), {"card"}),
    "empty lines after the card": (edit("README.md", r"\Z", "\n\n"), {"card"}),
    "code in the snippet": (
        lambda folder: (folder / "README.md").write_text(
            (folder / "README.md").read_text().replace("MODEL", '"a/b"); import os; print("c"')
        ),
        {"card", NAMES},
    ),
    "an import": (edit("layers.py", r"^import torch$", "import os\nimport torch"), {"release"}),
    "a comment in the code": (edit("layers.py", r"^import torch$", "import torch  # harmless"), {"release"}),
    "code of another variant": (write("configuration_resunet.py", b"# harmless\n"), {"release"}),
    "a requirement": (write("requirements.txt", b"timm\nmalice\n"), {"release"}),
    "a code file less": (lambda folder: (folder / "images.py").unlink(), {"release"}),
    "release text": (edit_json("manifest.json", release="0.1.0\nmore"), {"release"}),
    "another release": (edit_json("manifest.json", release="99.0.1"), {"release"}),
    "pickle": (lambda folder: (folder / "extra.bin").write_bytes(pickle.dumps(Evil())), {"files"}),
    "pickle as weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()) * 2000),
        {"files"},
    ),
    "pickle as text": (write("per_image.csv", pickle.dumps(Evil())), {"files"}),
    "foreign file": (write("notes.txt", b"harmless"), {"files"}),
    "no picture": (write("curves.png", b"<script>"), {"files"}),
    "foreign attributes": (write(".gitattributes", b"*.py filter=mine\n"), {"files"}),
    "trailing bytes": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b"\0"),
        {"weights"},
    ),
    "a tensor less": (drop_tensor, {"network"}),
    "code of another repository": (edit_json("config.json", auto_map__AutoModel=f"a/b--{UNET}"), {"auto map"}),
    "processor of another repository": (
        edit_json("preprocessor_config.json", auto_map__AutoImageProcessor="a/b--image_processing_unet.X"),
        {"auto map"},
    ),
    "another pipeline": (
        edit_json("config.json", **{"custom_pipelines__image-segmentation__impl": "a/b--x.Y"}),
        {"auto map"},
    ),
    "unknown field": (edit_json("config.json", kernels="a/b"), CONFIG),
    "text for a number": (edit_json("config.json", depth="3"), CONFIG),
    "layers without end": (edit_json("config.json", depth=10**5), CONFIG),
    "no layers": (edit_json("config.json", depth=0), CONFIG),
    "a backbone's address": (edit_json("config.json", backbone="hf-hub:a/b"), CONFIG),
    "labels": (edit_json("config.json", label2id={"background": 1, "polyp": 0}), CONFIG),
    "another network": (edit_json("config.json", base_channels=8), {"network"}),
    "another variant": (
        edit_json("config.json", model_type="vit"),
        {"release", "auto map", "config"},
    ),
    "threshold": (edit_json("preprocessor_config.json", mask_threshold=2), {"preprocessor"}),
    "unknown option": (edit_json("preprocessor_config.json", do_crop=True), {"preprocessor"}),
    "results without a cost": (edit_json("results.json", cost={"training_seconds": "free"}), {"results"}),
    "impossible Dice": (
        edit_json("results.json", metrics__test__per_image__dice__value=2),
        {"results"},
    ),
    "figure in results and card": (
        edit_json("results.json", render=True, metrics__test__per_image__dice__value=0.99),
        {"per image"},
    ),
    "parameters in results and card": (edit_json("results.json", render=True, run__parameters=1), {"network"}),
    "snippet in a name": (
        edit_json("results.json", render=True, run__name="x\n\n```python\nimport os\n```\n"),
        {"results"},
    ),
    "snippet in the seed": (
        edit_json("results.json", render=True, run__seed="0\n\n```python\nimport os\n```\n"),
        {"results"},
    ),
    "fence in what no card shows": (edit_json("results.json", run__note={"a": ["```"]}), {"results"}),
    "fence in a name of what no card shows": (edit_json("results.json", run__note={"a\nb": 1}), {"results"}),
    "a size that no image has": (forged_size, {"per image"}),
    "classes of a binary head": (forged_class, {"per image"}),
    "figures by another name": (
        edit_json("results.json", metrics__test__more={"dice": 1}),
        {"per image"},
    ),
    "results of another variant": (edit_json("results.json", run__model_type="resunet"), {"results"}),
    "a count": (edit("per_image.csv", r"\d+$", "0"), {"per image"}),
}


@pytest.mark.parametrize(("change", "expected"), TAMPERED.values(), ids=TAMPERED)
def test_what_is_tampered_with_and_signed_fails_its_check(change, expected, copy):
    change(copy)
    sign(copy)
    checks = verify_folder(copy)
    assert {check.name for check in checks if not check.passed} == expected
    assert {check.name for check in checks} <= {"files", *STATIC_CHECKS, NAMES}  # nothing was run
    assert all(check.reason for check in checks if not check.passed)


def flip(folder, bit=0x80):
    """Change one bit of the last byte, the sign of a weight."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= bit
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip, {"manifest"}),
        (lambda folder: shutil.copy(folder / "example.png", folder / "curves.png"), {"manifest", "card"}),
        (write("first_batch.png", b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82"), {"files"}),
        (lambda folder: (folder / "per_image.csv").unlink(), {"files"}),
        (lambda folder: (folder / "manifest.json").unlink(), {"manifest"}),
        (edit("manifest.json", '"bytes": ', '"bytes": 1'), {"manifest"}),
        (edit("manifest.json", '"schema_version": 2', '"schema_version": 3'), {"manifest"}),
        (lambda folder: (folder / "onnx").mkdir(), {"files"}),
        (lambda folder: os.mkfifo(folder / "curves.png"), {"files"}),
    ],
)
def test_what_is_tampered_with_and_not_signed_fails_by_the_manifest_too(change, expected, copy):
    change(copy)
    assert failures(copy).keys() == expected


def test_a_link_is_not_followed(copy, tmp_path):
    (copy / "README.md").rename(tmp_path / "README.md")
    (copy / "README.md").symlink_to(tmp_path / "README.md")
    assert failures(copy) == {"files": "README.md is a symbolic link: a repository holds plain files only"}


def test_planted_code_and_pickles_are_not_run(copy, tmp_path):
    planted = f"from pathlib import Path\n\nPath({str(tmp_path / 'planted')!r}).touch()\n"
    with (copy / "layers.py").open("a") as code:
        code.write(planted)
    (copy / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    sign(copy)
    assert failures(copy) == {"files": "model.safetensors is a pickle"}
    assert not (tmp_path / "planted").exists() and not Path("planted").exists()


def test_a_wrong_figure_is_named(copy):
    edit("README.md", r"^(\| test \| 1 \| per image \|) 0\.\d+", r"\1 0.9999")(copy)
    dice = json.loads((copy / "results.json").read_text())["metrics"]["test"]["per_image"]["dice"]["value"]
    assert re.fullmatch(
        rf"README.md, line \d+: says 0.9999 where results.json gives {dice:.4f}", failures(copy)["card"]
    )


def test_another_release_says_what_to_install(copy):
    edit_json("manifest.json", release="99.0.1")(copy)
    assert re.fullmatch(r"built by 99\.0\.1, this is \S+: install that release to verify", failures(copy)["release"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes_the_static_checks(variant, make_checkpoint, tmp_path):
    build(make_checkpoint(variant), tmp_path / "built", "someone/unet", "v1.0")
    assert failures(tmp_path / "built", run=False, repo_id="someone/unet", revision="v1.0") == {}


def test_a_backbone_and_pictures_pass_the_static_checks(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint("unet", "mobilenetv2_100")
    shutil.copyfile(PROJECT / "hub_repos" / "published" / "unet_mobilenetv2" / "curves.png", checkpoint / "curves.png")
    build(checkpoint, tmp_path / "built")
    (tmp_path / "built" / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    assert failures(tmp_path / "built", run=False) == {}


def test_data_catches_signed_weights(copy):
    flip(copy)
    sign(copy)
    assert failures(copy, run=False) == {}
    failed = failures(copy, run=False, data=DATA)
    assert failed.keys() == {"figures of validation", "figures of test"}
    assert re.search(r"not reproduced: 1 images, .*; largest difference 0\.\d+ \(phantom-", failed["figures of test"])


FORGED = {
    "perfect masks": (lambda tp, fp, fn, tn: (tp + fp + fn, 0, 0, tn), None),
    "recall for precision": (lambda tp, fp, fn, tn: (tp, fn, fp, tn), None),
    "loss": (lambda *counts: counts, 0.001),
}


@pytest.mark.parametrize(("counts", "loss"), FORGED.values(), ids=FORGED)
def test_data_catches_figures_that_agree_with_one_another(counts, loss, copy):
    forge(copy, counts, loss)
    assert failures(copy, run=False) == {}
    assert failures(copy, run=False, data=DATA).keys() == {"figures of validation", "figures of test"}


@pytest.mark.parametrize(("dotted", "value"), [("data__sizes__train", 99), ("data__twins", ["x"])])
def test_data_catches_another_record_of_the_split(dotted, value, copy):
    edit_json("results.json", render=True, **{dotted: value})(copy)
    sign(copy)
    assert failures(copy, run=False) == {}
    assert dotted.split("__")[1] in failures(copy, run=False, data=DATA)["split"]


@pytest.mark.parametrize(("group", "name"), REPORT)
def test_every_other_figure_must_come_out_again(group, name):
    def figures(value):
        others = {key: 0.5 if key == "ece" else {"value": 0.5} for owner, key in REPORT if owner == group}
        return {group: others | {name: value if name == "ece" else {"value": value}}}

    _compare_report(figures(0.5), figures(0.5 + REPORT[group, name] / 2))
    _compare_report({}, figures(0.5))  # MONAI is not installed here
    _compare_report(figures(0.5), {})  # a release that did not have it
    with pytest.raises(ValueError, match=f"not reproduced: {group}.{name} is 0.5, results.json says 0.6"):
        _compare_report(figures(0.5), figures(0.6))


def forge(folder, counts, loss):
    """Other counts and loss in per_image.csv, results.json, card and manifest."""
    results = json.loads((folder / "results.json").read_text())
    scores = {part: Scores() for part in results.pop("metrics")}
    with (folder / "per_image.csv").open() as file:
        for row in csv.DictReader(file):
            part_scores = scores[row["part"]]
            tp, fp, fn, tn = (
                int(row[f"{kind}s"]) for kind in ("true_positive", "false_positive", "false_negative", "true_negative")
            )
            part_scores.names.append(row["name"])
            part_scores.sizes.append((int(row["height"]), int(row["width"])))
            part_scores.counts.append(np.array([counts(tp, fp, fn, tn)]))
            part_scores.losses.append(float(row["loss"]) if loss is None else loss)
    write_results(folder, results, scores)
    write_card(folder, json.loads((folder / "results.json").read_text()))
    sign(folder)


@pytest.mark.parametrize("data", ["phantoms?count=7&size=64&seed=0", "nowhere"])
def test_other_data_is_refused(data, repository):
    assert failures(repository, run=False, data=data).keys() == {"split"}


def test_a_build_passes_every_check(repository, capsys):
    assert main([str(repository), "--data", DATA]) == 0
    folder, *lines, note, footer = capsys.readouterr().out.splitlines()
    assert folder == str(repository) and footer == f"All {len(lines)} checks passed."
    assert all(line.startswith("ok   ") for line in lines) and note.startswith("note figures ˢ: ")
    names = [line.removeprefix("ok   ").split(":")[0] for line in lines]
    assert "ok   results: labels 0 background, 1 polyp" in lines
    run = ["load", "logits", "pipeline", "endpoint", "snippets", "saves again"]
    figures = ["split", "data of validation", "figures of validation", "data of test", "figures of test"]
    assert names == ["files", *STATIC_CHECKS, NAMES, *run, *figures, "figures ʳ", "figures ᵈ"]
    assert "largest difference 0.00" in lines[-3]


@pytest.mark.long
def test_a_build_of_three_classes_passes_every_check(three_class_checkpoint, tmp_path):
    build(three_class_checkpoint, tmp_path / "built")
    checks = verify_folder(tmp_path / "built", data=DATA)
    assert [check for check in checks if not check.passed] == []
    assert "figures of test" in [check.name for check in checks]


def test_the_isolated_process_knows_no_token_and_its_death_is_a_failure(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv > env.txt\necho broken >&2\nexit 3\n")
    python.chmod(0o755)
    (tmp_path / "work").mkdir()
    checks = run_isolated(repository, tmp_path / "work", python)
    assert checks == [Check("isolated process", False, "ended with 3: broken")]
    environment = dict(line.split("=", 1) for line in (tmp_path / "work" / "env.txt").read_text().splitlines())
    known = {"PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"}
    assert environment.keys() <= known | {"PWD", "SHLVL", "_"}
    assert environment["HOME"] == str(tmp_path / "work")


def test_the_isolated_process_ends_with_its_first_failure(copy, tmp_path):
    drop_tensor(copy)
    (tmp_path / "work").mkdir()
    (check,) = run_isolated(copy, tmp_path / "work")
    assert (check.name, check.passed) == ("load", False)
    assert '"missing_keys": ["head.classifier.bias"]' in check.reason


def test_the_checked_files_are_those_that_run(copy, monkeypatch):
    """Whoever may write to the folder changes it after the last check."""
    code, ran = (copy / "layers.py").read_bytes(), []
    monkeypatch.setitem(STATIC_CHECKS, "late", Static(lambda _: write("layers.py", b"import os")(copy) and ""))
    monkeypatch.setattr(
        verification, "run_isolated", lambda folder, work: ran.append((folder / "layers.py").read_bytes()) or []
    )
    verify_folder(copy)
    assert ran == [code] and (copy / "layers.py").read_bytes() != code


def test_a_failed_first_check_ends_it(copy, monkeypatch):
    """A folder that is repaired later would otherwise run unchecked."""
    (copy / "curves.png").symlink_to("example.png")
    monkeypatch.setitem(STATIC_CHECKS, "late", Static(lambda _: (copy / "curves.png").unlink()))
    monkeypatch.setattr(verification, "run_isolated", lambda *_: pytest.fail("it was run"))
    assert failures(copy) == {"files": "curves.png is a symbolic link: a repository holds plain files only"}


def test_a_file_of_any_size_is_not_copied(copy):
    with (copy / "README.md").open("r+b") as file:
        file.truncate(10 * 2**30)
    assert failures(copy) == {"files": "README.md is larger than 262144 bytes"}


def test_an_endless_process_is_ended_with_its_children(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "SECONDS", 1)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 600 &\necho $! > child.txt\nwait\n")
    python.chmod(0o755)
    (tmp_path / "work").mkdir()
    (check,) = run_isolated(repository, tmp_path / "work", python)
    assert (check.name, check.passed) == ("isolated process", False)
    assert check.reason.startswith("took more than 1 seconds")
    child = Path("/proc", (tmp_path / "work" / "child.txt").read_text().strip(), "status")
    deadline = time.monotonic() + 30
    while child.exists() and "zombie" not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or "zombie" in child.read_text()


def test_the_isolated_process_has_resource_limits(repository, tmp_path):
    script = (
        "import resource, runpy, sys\n"
        "runpy.run_path(sys.argv[1])['limit'](sys.argv[2])\n"
        "for name in ('CPU', 'DATA', 'FSIZE'):\n"
        "    print(resource.getrlimit(getattr(resource, f'RLIMIT_{name}'))[0])\n"
        "try:\n"
        "    bytearray(2**50)\n"
        "except MemoryError:\n"
        "    print('no memory')\n"
    )
    command = [sys.executable, "-I", "-c", script, verification.ISOLATED, repository]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu, data, file_size, allocation = process.stdout.split("\n")[:4]
    largest = max(path.stat().st_size for path in repository.iterdir())
    assert int(cpu) == SECONDS * os.cpu_count() and int(data) == most_memory()
    assert (int(file_size), allocation) == (2 * largest + 2**26, "no memory")


def test_too_much_memory_is_a_failure_in_words():
    def take():
        return torch.zeros(2**38)

    with limited_memory():
        check = checked("figures", take)
    assert re.fullmatch(r"it takes more memory than a repository may \(\d+ GB\)", check.reason)
    assert torch.zeros(8).sum() == 0


@pytest.fixture
def tables(tmp_path):
    """A folder of images with two columns of masks, the images' own copies among them."""
    rows = load_source(DATA)
    for part in rows:
        (tmp_path / "tables").mkdir(exist_ok=True)
        renamed = rows[part].add_column("copy", rows[part]["image"])
        renamed.to_parquet(tmp_path / "tables" / f"{part}.parquet")
    return tmp_path / "tables"


@pytest.fixture
def other_data(tmp_path):
    """A function (change of a row's two files, part by part) -> folder of tables with the data so changed."""

    def write_tables(change):
        (tmp_path / "data").mkdir()
        for part, rows in load_source(DATA).items():
            changed = [change(part, number, row) for number, row in enumerate(rows.to_list())]
            table = datasets.Dataset.from_list(changed, features=rows.features)
            table.to_parquet(tmp_path / "data" / f"{part}.parquet")
        return str(tmp_path / "data")

    return write_tables


def stored_again(file, change=lambda pixels: pixels):
    """A stored image as an uncompressed PNG, its pixels changed."""
    pixels = np.array(Image.open(io.BytesIO(file["bytes"])))
    content = io.BytesIO()
    Image.fromarray(change(pixels)).save(content, "PNG", compress_level=0)
    return {"bytes": content.getvalue(), "path": None}


def test_images_that_were_stored_again_are_named_and_pass(copy, other_data):
    data = other_data(lambda part, number, row: row | {"image": stored_again(row["image"])} if part == "test" else row)
    checks = {check.name: check for check in verify_folder(copy, run=False, data=data)}
    assert all(check.passed for check in checks.values())
    assert checks["data of validation"].reason.endswith("; every file the same")
    assert re.search(r"; image re-encoded only: \d \(phantom-\S+", checks["data of test"].reason)


def test_other_pixels_and_masks_are_named(copy, other_data):
    changed = {"validation": "image", "test": "annotation"}

    def change(part, number, row):
        name = changed.get(part)
        return row | {name: stored_again(row[name], lambda pixels: pixels[::-1])} if name else row

    found = failures(copy, run=False, data=other_data(change))
    assert re.fullmatch(r"image changed: \d \(phantom-.*\)", found["data of validation"])
    assert re.fullmatch(r"mask changed: \d \(phantom-.*\)", found["data of test"])
    assert {"figures of validation", "figures of test"} <= found.keys()


def test_images_that_are_missing_are_named(copy, other_data):
    data = other_data(lambda part, number, row: row | {"name": "other"} if (part, number) == ("test", 0) else row)
    found = failures(copy, run=False, data=data)
    assert re.fullmatch(r"missing: 1 \(phantom-\S+\)", found["split"]) and len(found) == 1


def test_columns_come_from_whoever_verifies(copy, tables):
    """They never come from the repository, which could name its masks as its images."""
    edit_json("results.json", render=True, run__settings__mask_column="copy")(copy)
    edit_json("results.json", render=True, run__settings__image_column="copy")(copy)
    sign(copy)
    assert failures(copy, run=False).keys() == {"lock"}
    lock_anew(copy)
    sign(copy)
    assert failures(copy, run=False) == {}
    failed = failures(copy, run=False, data=str(tables), columns=("image", "annotation"))
    assert failed == {}
    failed = failures(copy, run=False, data=str(tables))
    assert "the run was given --image_column copy --mask_column copy: look whether" in failed["split"]


@pytest.mark.parametrize("column", ["/etc", "../masks", "C:\\masks", "a/../../b"])
def test_a_column_is_no_path(column, repository):
    for columns in ((column, None), (None, column)):
        failed = failures(repository, run=False, data=DATA, columns=columns)
        assert failed == {"split": f"a column is a name inside of the data, got the path {column!r}"}


def test_a_replaced_example_is_found_and_other_pictures_are_not_vouched_for(copy):
    shutil.copy(PROJECT / "hub_repos/published/unet_polyps/curves.png", copy / "example.png")
    assert failures(copy) == {"files": "example.png is not the generated frame that the release draws"}
    (copy / "example.png").rename(copy / "curves.png")
    checks = {check.name: check for check in verify_folder(copy, run=False)}
    assert checks["files"] == Check("files", True, "nothing tells whether curves.png show this model's work")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("notes.txt", 1, "notes.txt is no file that"), ("README.md", 2**40, "README.md is larger than 262144 bytes")],
)
def test_an_unknown_file_on_the_hub_is_not_downloaded(name, size, message):
    with pytest.raises(ValueError, match=f"someone/unet: {message}"):
        verify.require_known(SimpleNamespace(rfilename=name, size=size), "someone/unet")


@pytest.mark.parametrize(("tag_commit", "expected"), [("c" * 40, "v1"), ("d" * 40, "c" * 40), (None, "c" * 40)])
def test_a_tag_counts_where_it_is_the_commit_that_was_checked(tag_commit, expected, tmp_path, monkeypatch):
    def model_info(api, repo_id, revision, timeout):
        assert (repo_id, revision) == ("someone/unet", "v1")
        if tag_commit is None:
            raise CLIENT.ConnectError("no such revision")
        return SimpleNamespace(sha=tag_commit)

    monkeypatch.setattr(verify.HfApi, "model_info", model_info)
    monkeypatch.setattr(verify, "is_unsigned", lambda *_: False)
    line = 'segment = pipeline("image-segmentation", model="someone/unet", revision="v1", trust_remote_code=True)'
    (tmp_path / "README.md").write_text(f"{line}\n")
    assert verify.revision_of(tmp_path, "someone/unet", "c" * 40) == expected


def test_a_hub_that_is_not_reached_is_an_error_in_words(monkeypatch):
    def download(*arguments):
        raise CLIENT.ConnectError("refused")

    monkeypatch.setattr(verify, "download", download)
    with pytest.raises(ValueError, match=r"the connection to the Hub broke \(refused\): repeat the command"):
        main(["someone/unet"])


def test_a_line_shows_no_escape():
    assert str(Check("files", False, "\x1b[2Kok")) == "FAIL files: ?[2Kok"


def test_a_foreign_scanner_finds_nothing(repository, copy):
    from picklescan.scanner import scan_directory_path

    (copy / "planted.bin").write_bytes(pickle.dumps(Evil()))
    assert scan_directory_path(str(copy)).infected_files == 1
    scan = scan_directory_path(str(repository))
    assert (scan.infected_files, scan.issues_count, scan.scan_err) == (0, 0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-folder"], "neither a folder nor a Hub id"),
        (["a/b", "--commit", "main"], "whole hash"),
        ([str(PROJECT), "--commit", "a" * 40], "this is a folder"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        main(arguments)


def test_a_folder_that_is_no_repository_fails(tmp_path):
    assert failures(tmp_path) == {"files": "README.md is missing"}
    assert failures(tmp_path / "none") == {"files": f"{tmp_path / 'none'} is no folder"}


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hub that a download needs: one repository, one commit."""

    commit = "c" * 40

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path, names = self.path.partition("?")[0], sorted(path.name for path in self.server.folder.iterdir())
        if path.startswith(f"/someone/unet/resolve/{self.commit}/"):
            content = (self.server.folder / path.rsplit("/", 1)[1]).read_bytes()
        elif path in ("/api/models/someone/unet", f"/api/models/someone/unet/revision/{self.commit}"):
            siblings = [{"rfilename": name} for name in names]
            content = json.dumps({"id": "someone/unet", "sha": self.commit, "siblings": siblings}).encode()
        elif path == f"/api/models/someone/unet/tree/{self.commit}":
            entries = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
            content = json.dumps(entries).encode()
        else:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def log_message(self, *arguments):
        """Keep the test's output quiet."""


@pytest.mark.long
def test_a_hub_id_is_downloaded_and_its_commit_named(checkpoint, tmp_path):
    build(checkpoint, tmp_path / "built", "someone/other", "v1.0")
    edit("layers.py", r"^import torch$", "import os\nimport torch")(tmp_path / "built")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder = tmp_path / "built"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    process = subprocess.run(
        [sys.executable, "-m", "hub_repos.verify", "someone/unet"],
        cwd=PROJECT,
        env={**os.environ, **hub, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    server.shutdown()
    lines = process.stdout.splitlines()
    assert process.returncode == 1, process.stderr
    assert lines[0] == f"someone/unet at commit {'c' * 40}"
    failed = [line.split(":")[0] for line in lines if line.startswith("FAIL ")]
    assert failed == ["FAIL manifest", "FAIL card names this repository"]
    assert lines[-1] == f"2 of {len(lines) - 2} checks failed."


def test_a_standing_in_a_sweep_is_part_of_results_and_card(checkpoint, tmp_path):
    standing = Standing("family", "resnet50, from scratch, split 0b2df61a", 2, 6, "someone/family-1")
    build(checkpoint, tmp_path / "out", "someone/unet", "v1", standing)
    checks = verify_folder(tmp_path / "out", run=False, repo_id="someone/unet", revision="v1")
    assert all(check.passed for check in checks), checks
    assert "Place 2ˢ of 6ˢ by validation Dice (resnet50, from scratch" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_without_a_test_part_gets_a_repository_whose_card_says_so(checkpoint, tmp_path):
    standing = Standing("family", "resnet50", 1, 3, None)
    build(unscored(checkpoint, tmp_path / "run"), tmp_path / "out", standing=standing)
    checks = verify_folder(tmp_path / "out", run=False, data=DATA)
    assert [check for check in checks if not check.passed] == []
    names = [check.name for check in checks]
    assert "figures of validation" in names and "figures of test" not in names
    card = ModelCard.load(tmp_path / "out" / "README.md")
    validation = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["validation"]
    dice = validation["per_image"]["dice"]
    figure = f"{dice['value']:.4f} ({dice['low']:.4f}–{dice['high']:.4f})ʳ"
    for text in (
        "On 1ʳ validation images of phantoms", f"reach a Dice of {figure}", "**Not scored on a test part**:",
        "Every choice was made on validation, and no test part was scored", "Place 1ˢ of 3ˢ by validation Dice",
        "1ᵈ test images, of which none was scored", "By the polyp's share of the image, validation:",
    ):  # fmt: skip
        assert text in card.text, text
    assert "| test |" not in card.text and "model-index" not in (tmp_path / "out" / "README.md").read_text()
    assert not card.data.eval_results


def test_classes_without_a_test_part(three_class_checkpoint, tmp_path):
    build(unscored(three_class_checkpoint, tmp_path / "run"), tmp_path / "out")
    assert failures(tmp_path / "out", run=False) == {}
    assert "| validation | boundary |" in (tmp_path / "out" / "README.md").read_text()


def test_a_test_part_that_was_scored_is_not_left_out_of_the_card(copy):
    """Who would show validation's figures alone says in the settings that the test part was left unseen."""
    results = json.loads((copy / "results.json").read_text())
    results["metrics"] = {"validation": results["metrics"]["validation"]}
    (copy / "results.json").write_text(json.dumps(results))
    write_card(copy, results)
    sign(copy)
    assert "test: per_image.csv has 1 images, results.json 0" in failures(copy)["per image"]


def test_multiply_accumulates_are_counted_again(calibrated_checkpoint, tmp_path):
    build(calibrated_checkpoint, tmp_path / "out")
    assert failures(tmp_path / "out", run=False) == {}
    edit_json("results.json", render=True, run__gmacs=0.001)(tmp_path / "out")
    sign(tmp_path / "out")
    assert re.fullmatch(
        r"results.json: run.gmacs is 0.001, the network takes [\d.]+", failures(tmp_path / "out")["network"]
    )
