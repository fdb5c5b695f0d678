"""Each change to a built repository fails the check that its kind has, signed again or not; nothing planted runs."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest

from hub_unets.hub_repos.checks.check import Check
from hub_unets.hub_repos.checks.verification import STATIC_CHECKS, verify_folder
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.card import write_card
from tests.hub_repos.tampering import NAMES, PROJECT, Evil, drop_tensor, edit, edit_json, failures, flip, sign, write


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


UNET = "modeling_unet.UNetForSemanticSegmentation"
CONFIG = {"config"}
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


def test_a_file_of_any_size_is_not_copied(copy):
    with (copy / "README.md").open("r+b") as file:
        file.truncate(10 * 2**30)
    assert failures(copy) == {"files": "README.md is larger than 262144 bytes"}


def test_a_replaced_example_is_found_and_other_pictures_are_not_vouched_for(copy):
    shutil.copy(PROJECT / "hub_repos/published/unet_polyps/curves.png", copy / "example.png")
    assert failures(copy) == {"files": "example.png is not the generated frame that the release draws"}
    (copy / "example.png").rename(copy / "curves.png")
    checks = {check.name: check for check in verify_folder(copy, run=False)}
    assert checks["files"] == Check("files", True, "nothing tells whether curves.png show this model's work")


def test_a_foreign_scanner_finds_nothing(repository, copy):
    from picklescan.scanner import scan_directory_path

    (copy / "planted.bin").write_bytes(pickle.dumps(Evil()))
    assert scan_directory_path(str(copy)).infected_files == 1
    scan = scan_directory_path(str(repository))
    assert (scan.infected_files, scan.issues_count, scan.scan_err) == (0, 0, False)


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
