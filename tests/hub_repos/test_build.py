import ast
import hashlib
import json
import os
import re
import shutil
import subprocess

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hub_unets.hub_repos.checks.figures import snippets
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.repository import code
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.card import base_model, card_data, render_card
from hub_unets.hub_repos.repository.code import code_files, copy_code, flatten
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import load_model
from hub_unets.training.records.results import check_results
from tests.variants import VARIANTS


def digest(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_repository_holds_just_what_it_needs(repository):
    code = {path.name for path in code_files("unet")}
    network = ("configuration_unet", "encoder", "image_processing_unet", "images", "layers", "modeling_unet")
    network += ("feature_pyramid", "label_maps", "processor_options", "regions", "segments", "view")
    network += ("image_files", "intensities")
    assert code == {f"{name}.py" for name in (*network, "handler")}
    data = {"README.md", "config.json", "model.safetensors", "per_image.csv", "preprocessor_config.json"}
    data |= {"requirements.txt", "LICENSE", "notebook.ipynb", "data_digests.csv"}
    assert {path.name for path in repository.iterdir()} == code | data | {
        "results.json", "history.csv", "manifest.json", "example.png"
    }  # fmt: skip


def test_the_manifest_has_every_other_file(repository):
    manifest = json.loads((repository / "manifest.json").read_text())
    files = {path.name: path.read_bytes() for path in repository.iterdir() if path.name != "manifest.json"}
    assert (manifest["release"], manifest["commit"]) == (code.release(), code.head_commit())
    printed = subprocess.run(
        "LC_ALL=C ls *.py requirements.txt | LC_ALL=C sort | xargs sha256sum | sha256sum",
        shell=True, cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert manifest["code_sha256"] == printed.stdout.split()[0]
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(files.items())
    }


def test_config_and_processor_name_every_auto_class(repository):
    config = json.loads((repository / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_unet.UNetConfig",
        "AutoModel": "modeling_unet.UNetForSemanticSegmentation",
        "AutoModelForSemanticSegmentation": "modeling_unet.UNetForSemanticSegmentation",
        "AutoModelForImageSegmentation": "modeling_unet.UNetForSemanticSegmentation",
    }
    processor = json.loads((repository / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_unet.UNetImageProcessor"}
    assert "--" not in json.dumps([config, processor])


def test_weights_are_those_of_the_checkpoint(checkpoint, repository):
    expected, weights = (load_file(folder / "model.safetensors") for folder in (checkpoint, repository))
    assert expected.keys() == weights.keys()
    assert all(bool((expected[key] == weights[key]).all()) for key in expected)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_every_file_has_the_mode_that_the_umask_gives(mask, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "run")
    (tmp_path / "run/model.safetensors").chmod(0o600)
    (tmp_path / "run/per_image.csv").chmod(0o600)
    before = os.umask(mask)
    try:
        build(tmp_path / "run", tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("said", ["float32", "its own"])
def test_half_precision_stays_half_and_is_computed_in_float32(dtype, said, checkpoint, tmp_path):
    run = shutil.copytree(checkpoint, tmp_path / "run")
    stored = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(run / "model.safetensors").items()
    }
    wide = next(name for name in stored if name.endswith("running_var"))
    stored[wide] = stored[wide].float()  # as of what float16 can't hold
    save_file(stored, run / "model.safetensors", {"format": "pt"})
    if said == "its own":
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    build(run, tmp_path / "out")
    built = load_file(tmp_path / "out/model.safetensors")
    assert built.keys() == stored.keys()
    assert all(built[name].dtype == stored[name].dtype for name in stored)
    if said == "float32":  # else transformers rounds the wide one when it loads
        assert all(torch.equal(built[name], stored[name]) for name in stored)
    assert (
        abs((tmp_path / "out/model.safetensors").stat().st_size / (run / "model.safetensors").stat().st_size - 1) < 0.1
    )
    model = find_variant("unet")[1].from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert [check for check in verify_folder(tmp_path / "out", run=False) if not check.passed] == []


def test_two_builds_are_byte_identical(checkpoint, repository, tmp_path):
    build(checkpoint, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(repository)


def test_published_code_imports_siblings_only_and_says_where_it_is_from(repository):
    for path in repository.glob("*.py"):
        source = path.read_text()
        assert re.match(r"# (configuration|modeling)/\w+\.py of hub-unets \S+.*; Apache-2.0\n", source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 1 or node.module.split(".")[0] not in ("configuration", "modeling")
                if node.level:
                    assert (repository / f"{node.module}.py").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_published_file_itself_imports_all_that_it_needs(variant, tmp_path):
    copy_code(variant, tmp_path)
    for path in tmp_path.glob("*.py"):
        direct = {str(tmp_path / f"{name}.py") for name in get_relative_imports(path)}
        assert set(get_relative_import_files(path)) == direct


def test_imports_that_cannot_be_flattened_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "PROJECT", tmp_path)
    lines = "import hub_unets.modeling.layers", "from hub_unets.modeling import layers", "from .layers import x"
    for number, line in enumerate(lines):
        path = tmp_path / f"modeling_{number}.py"
        path.write_text(f"{line}\n")
        with pytest.raises(ValueError, match="can be published"):
            flatten(path)


def test_a_multi_line_import_is_flattened(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "PROJECT", tmp_path)
    path = tmp_path / "modeling_x.py"
    path.write_text("from hub_unets.modeling.layers import (\n    a,\n    b as c,\n)\n\nx = 1  # kept\n")
    assert flatten(path).splitlines()[1:] == ["from .layers import a, b as c", "", "x = 1  # kept"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json", "results.json"])
def test_an_unfinished_run_is_refused(missing, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    with pytest.raises(ValueError, match=f"not a finished run: {missing}"):
        build(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_build_is_replaced(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    build(checkpoint, tmp_path / "out")
    (tmp_path / "out" / "stale.txt").write_text("old")
    build(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out" / "stale.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        build(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_the_card_says_what_results_json_says(repository):
    card = ModelCard.load(repository / "README.md")
    results = json.loads((repository / "results.json").read_text())
    dice = results["metrics"]["test"]["per_image"]["dice"]
    assert f"{dice['value']:.4f} ({dice['low']:.4f}–{dice['high']:.4f})" in card.text
    metadata = yaml.safe_load(card.data.to_yaml())
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-segmentation"
    figures = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert figures["dice (per image, original size)"] == round(dice["value"], 4)


def test_the_card_has_a_row_for_each_class(three_class_checkpoint, repository, tmp_path):
    build(three_class_checkpoint, tmp_path / "built")
    text = (tmp_path / "built" / "README.md").read_text()
    per_class = json.loads((tmp_path / "built" / "results.json").read_text())["metrics"]["test"]["per_class"]
    rows = [line for line in text.splitlines() if re.match(r"\| test \| (polyp|boundary) \|", line)]
    assert len(rows) == len(per_class) == 2
    for row, metrics in zip(rows, per_class, strict=True):
        dices = [metrics["per_image"]["dice"], metrics["present"]["dice"], metrics["pooled"]["dice"]]
        numbers = [f"{dice['value']:.4f} ({dice['low']:.4f}–{dice['high']:.4f})" for dice in dices]
        numbers[1] += f", {metrics['present']['images']} images"
        assert row == f"| test | {metrics['label']} | {' | '.join(numbers)} |"
    assert "name: dice (mean of classes, per image, original size)" in text
    assert "`--boundary_width 3`" in text and "label 2, boundary" in text
    assert "flatters" not in (repository / "README.md").read_text()


def test_the_card_drops_unlikely_regions_by_hand_as_the_processor_does(checkpoint, tmp_path, modules_cache):
    run, image = tmp_path / "run", tmp_path / "image.png"
    shutil.copytree(checkpoint, run)
    Image.fromarray(phantom(7, 0, 64)[0]).save(image)
    model, processor = load_model(run)
    sizes = [Image.open(image).size[::-1]]
    with torch.inference_mode():
        logits = model(**processor(Image.open(image))).logits
    (unfiltered,) = processor.post_process_instance_segmentation(logits, target_sizes=sizes)
    scores = sorted(segment["score"] for segment in unfiltered["segments_info"])
    processor.score_threshold = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    processor.save_pretrained(run)
    build(run, tmp_path / "built")
    *_, snippet = snippets(tmp_path / "built", image)
    names = {}
    exec(snippet, names)  # noqa: S102
    (mask,) = processor.post_process_semantic_segmentation(logits, sizes)
    assert 0 < (mask > 0).sum() < (unfiltered["segmentation"] > 0).sum()
    assert torch.equal(names["mask"], mask)


def test_the_card_shows_polyps_outlines_and_calibration(repository, tmp_path):
    results = json.loads((repository / "results.json").read_text())
    test, definitions = results["metrics"]["test"], results["definitions"]
    results["calibration"] = {"temperature": 1.25, "images": 88, "ece_before": 0.02, "ece_after": 0.01} | {
        "dice_before": 0.8, "dice_after": 0.81, "false_alarms_before": 0.3, "false_alarms_after": 0.12
    }  # fmt: skip
    test["polyps"] |= {"polyps": 7, "found": 5, "touched": 6, "false_polyps": 2}
    test["polyps"]["recall"] = {"value": 0.7143, "low": 0.5, "high": 0.9}
    test["boundary"]["hd95"] = {"value": 12.34, "low": 5, "high": 20}
    test["calibration"]["ece"] = 0.0321
    text = render_card(repository, results)
    for fragment in (
        *definitions.values(), "| test | 7 | 5 | 6 | 2 | 0.7143 (0.5000–0.9000) |", "| 12.3 (5.0–20.0) |",
        "test 0.0321ᵈ.", "a temperature of 1.250ˢ, by which", "ECE there is 0.0200ᵈ, as they are 0.0100ᵈ",
        "Dice was 0.8000ᵈ at a threshold of .5 and is 0.8100ʳ, crops marked 0.3000ᵈ and 0.1200ᵈ.",
    ):  # fmt: skip
        assert fragment in text, fragment
    assert not re.search(r"\n\n\n\n", text) and " \n" not in text
    for metrics in results["metrics"].values():
        del metrics["boundary"]
    reduced_card = render_card(repository, results)
    assert "NSD" not in reduced_card and "HD95" not in reduced_card and definitions["polyps"] in reduced_card


def test_the_cards_snippets_load_the_repository_by_its_tag(checkpoint, tmp_path):
    build(checkpoint, tmp_path / "out", "someone/unet", "v2", space=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "https://huggingface.co/spaces/someone/unet." in card
    assert card.count('"someone/unet", revision="v2", trust_remote_code=True') == 6 and "MODEL" not in card
    assert card.count('"someone/unet", revision="v2")') == 1


@pytest.mark.parametrize(
    ("source", "split", "licence"),
    [
        ("kvasir-seg", "80/10/10", "other"),
        ("archive.zip", "official", "other"),
        ("phantoms?count=6", "own", "apache-2.0"),
        ("my-clinic", "half-validation", None),
    ],
)
def test_the_licence_follows_the_data(repository, source, split, licence):
    results = json.loads((repository / "results.json").read_text())
    results["data"] |= {"source": source, "split": split}
    data = card_data(results, {})
    assert data.license == licence
    assert (data.eval_results[0].dataset_name == "Kvasir-SEG") == (licence == "other")
    results["data"]["extra"] = [{"source": "clinicdb", "split": "clinicdb", "images": 546, "sha256": "0" * 64}]
    assert card_data(results, {}).license == (licence if licence == "other" else None)


def test_a_card_shows_what_is_in_results_json_alone(checkpoint, tmp_path):
    build(checkpoint, tmp_path / "out", "someone/unet", "v2")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    results["run"]["gmacs"] = 12.345
    results["run"]["settings"] |= {"model.backbone": "resnet50", "learning_rate": "0.00321"}
    entry = {"epoch": 1.0, "eval_loss": None, "eval_dice": 0.4321, "eval_iou": 0.3}
    (tmp_path / "out" / "history.csv").unlink()  # as of an older run, whose log is in its results
    results["run"]["history"] = [{"epoch": 0.5, "loss": 1.0}, *({**entry, "epoch": float(n)} for n in range(1, 21))]
    results["cost"]["latency"] = {"p50": 41.6, "p95": 77.7, "images": 20, "threads": 2}
    results["sweep"] = {"name": "family", "group": "resnet50", "place": 3, "of": 6, "collection": "me/family-1"}
    results["data"] |= {"source": "kvasir-seg", "split": "official"}
    config["backbone"] = "resnet50"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    card = render_card(tmp_path / "out", results, "someone/unet", "v2")
    for text in (
        "12.35ʳ GMACs", "learning_rate: 0.00321", "42ˢ ms (median of 20ˢ; 95 % within 78ˢ ms)", "2ˢ CPU threads",
        "Place 3ˢ of 6ˢ by validation Dice (resnet50) in the sweep [family](https://huggingface.co/collections/me/family-1)",
        "[timm/resnet50.a1_in1k](https://huggingface.co/timm/resnet50.a1_in1k)", "Not a medical device",
        "arXiv:1911.07069", "arXiv:1505.04597", "| 20 | – | 0.4321 | 0.3000 |", "By the polyp's share of the image",
    ):  # fmt: skip
        assert text in card, text
    assert "\n# UNet on resnet50, trained on Kvasir-SEG\n" in card
    assert card.count("| 0.4321 |") == 7
    metadata = ModelCard(card).data
    assert (metadata.base_model, metadata.datasets) == ("timm/resnet50.a1_in1k", ["kowndinya23/Kvasir-SEG"])
    assert metadata.widget[0]["src"] == "https://huggingface.co/someone/unet/resolve/v2/example.png"


def test_a_card_names_a_second_data_set_and_the_mean_of_the_last_epochs(repository):
    results = json.loads((repository / "results.json").read_text())
    results["data"] |= {"source": "kvasir-seg", "split": "pranet"}
    results["data"]["extra"] = [{"source": "clinicdb", "split": "clinicdb", "images": 546, "sha256": "0" * 64}]
    results["run"]["best"] = {"step": 9, "epoch": 3.0, "dice": 0.5, "averaged": 2}
    check_results(results)
    card = render_card(repository, results)
    for text in (
        "It was trained on Kvasir-SEG and clinicdb, in which every image holds a polyp",
        "546ˢ images of clinicdb (split `clinicdb`) were trained on too: its terms hold as well.",
        "WM-DOVA maps",
        "Kept is the mean of the weights after each of the last 2ˢ epochs, validation Dice 0.5000ˢ",
    ):
        assert text in card, text
    assert "Best epoch" not in card and "one hospital's" not in card


def test_no_base_model_where_the_encoder_started_from_a_file_or_from_nothing(checkpoint):
    results = {"run": {"settings": {"backbone_weights": "none"}}}
    assert base_model(results, {"backbone": "resnet50"}) is None
    assert base_model({"run": {"settings": {}}}, {"backbone": None}) is None


def test_the_base_model_is_the_checkpoint_on_the_hub_that_a_run_started_from(checkpoint, tmp_path):
    results = json.loads((checkpoint / "results.json").read_text())
    results["run"]["settings"] |= {"start_from": "someone/unet@v2", "model.backbone": "resnet50"}
    results["run"]["started_from"] = {"repo_id": "someone/unet", "commit": "a1" * 20}
    check_results(results)
    assert card_data(results, {"backbone": "resnet50"}).base_model == "someone/unet"
    build(checkpoint, tmp_path / "out")
    card = render_card(tmp_path / "out", results)
    assert f"started from [someone/unet](https://huggingface.co/someone/unet) at commit `{'a1' * 20}`ˢ." in card
    results["run"]["started_from"] = None  # a folder
    assert base_model(results, {"backbone": "resnet50"}) is None
    assert "started from" not in render_card(tmp_path / "out", results)


def test_two_channels_let_argmax_find_the_mask(checkpoint, three_class_checkpoint, repository, tmp_path):
    built = tmp_path / "built"
    build(checkpoint, built, two_channels=True)
    assert (built / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
    assert "`logits` are (0, z)" in (built / "README.md").read_text()
    assert "(logits[0, 1].sigmoid() > " in (built / "README.md").read_text()
    config, processor = (built / name for name in ("config.json", "preprocessor_config.json"))
    processor.write_text(processor.read_text().replace('"score_threshold": 0.0', '"score_threshold": 0.5'))
    text = render_card(built, json.loads((built / "results.json").read_text()))
    assert "logits[0, 1].sigmoid()[inside]" in text and "logits[0, 0]" not in text
    assert json.loads(config.read_text())["background_channel"] is True
    assert "`background_channel=True`" in (repository / "README.md").read_text()
    single = find_variant("unet")[1].from_pretrained(repository).eval()
    double = find_variant("unet")[1].from_pretrained(built).eval()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        logits = single(pixels).logits
        assert torch.equal(double(pixels).logits, torch.cat([torch.zeros_like(logits), logits], dim=1))
        processor = UNetImageProcessor.from_pretrained(built)
        processor.mask_threshold, processor.score_threshold = 0.45, 0.48
        results = [processor.post_process_instance_segmentation(model(pixels)) for model in (single, double)]
        masks = [processor.post_process_semantic_segmentation(model(pixels))[0] for model in (single, double)]
    assert torch.equal(*masks) and 0 < masks[0].sum() < masks[0].numel()
    assert results[0][0]["segments_info"] == results[1][0]["segments_info"] != []
    with pytest.raises(UserError, match="two_channels is for a binary head"):
        build(three_class_checkpoint, tmp_path / "refused", two_channels=True)


def test_the_repositorys_code_wins_over_a_model_of_that_name_in_transformers(repository, modules_cache, monkeypatch):
    class NativeConfig(PretrainedConfig):
        model_type = "unet"

    NativeConfig.__module__ = "transformers.models.unet.configuration_unet"
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "unet", NativeConfig)
    assert type(AutoConfig.from_pretrained(repository, trust_remote_code=False)) is NativeConfig
    model = AutoModel.from_pretrained(repository, trust_remote_code=True)
    assert type(model).__name__ == "UNetForSemanticSegmentation"
    assert type(model.config).__name__ == "UNetConfig"


def test_where_marks_outside_the_view_are_dropped_the_cards_snippets_give_the_images(checkpoint, tmp_path):
    run, built = shutil.copytree(checkpoint, tmp_path / "run"), tmp_path / "built"
    UNetImageProcessor.from_pretrained(run, drop_outside_view=True).save_pretrained(run)
    build(run, built)
    card = (built / "README.md").read_text()
    assert card.count("images=[image])[0]") == 2 and "By hand, tensor in" not in card
    assert "A region wholly outside the endoscope's view is left out" in card
    *_, snippet = snippets(built, built / "example.png")
    names = {}
    exec(snippet, names)  # noqa: S102
    processor, image = names["processor"], names["image"]
    assert processor.drop_outside_view is True
    sizes = [(image.height, image.width)]
    expected = processor.post_process_semantic_segmentation(names["logits"], sizes, images=[image])[0]
    assert torch.equal(names["mask"], expected)
