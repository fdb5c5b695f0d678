"""The command on models and data in folders, and what it loads and which labels it takes for polyps."""

import csv
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.evaluate import main
from hub_unets.training.measure.models import load_model, polyp_labels_of
from hub_unets.training.records.results import read_results
from tests.training.measure.made_models import (
    PROCESSOR,
    box,
    constant_model,
    random_model,
)


def segformer(labels=("background", "polyp")):
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    return SegformerForSemanticSegmentation(config).eval()


def save(model, folder, processor=PROCESSOR):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    """A folder of twelve images and black and white masks, one of them empty."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(12):
        shape = 20 + number, 24
        image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
        image.save(tmp_path / "data" / "images" / f"f{number:02d}.png")
        Image.fromarray(box(shape, number, 10)).save(tmp_path / "data" / "masks" / f"f{number:02d}.png")
    return str(tmp_path / "data")


def scored(folder):
    """The results and the rows of per_image.csv that a command left."""
    with (folder / "per_image.csv").open(encoding="utf-8") as file:
        return read_results(folder / "results.json"), list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("id2label", "expected"),
    [
        ({0: "background", 1: "polyp"}, (1,)),
        ({0: "polyp", 1: "background"}, (0,)),
        ({0: "Background", 1: "neoplastic", 2: "non-neoplastic"}, (1, 2)),
        ({0: "LABEL_0", 1: "LABEL_1"}, (1,)),
        ({"0": "mucosa", "1": "lesion"}, (1,)),
        ({0: "Polyp", 1: "mucosa"}, (0,)),
        ({0: "mucosa", 1: "forceps", 2: "adenomatous polyp", 3: "hyperplastic polyp"}, (2, 3)),
        ({0: "background", 1: "polyp", 2: "instrument"}, (1,)),
        ({0: "background", 1: "polyp", 2: "boundary"}, (1, 2)),
    ],
)
def test_polyp_labels_of(id2label, expected):
    assert polyp_labels_of(SimpleNamespace(id2label=id2label)) == expected


def test_polyp_labels_that_the_names_do_not_tell():
    with pytest.raises(ValueError, match=r"which of the labels \['wall', 'tree', 'sky'\] mean polyp.*--polyp_labels"):
        polyp_labels_of(SimpleNamespace(id2label={0: "wall", 1: "tree", 2: "sky"}))


class TestLoadModel:
    def test_a_runs_own_checkpoint(self, tmp_path):
        model = random_model()
        loaded, processor = load_model(save(model, tmp_path, UNetImageProcessor(size=24, mask_threshold=0.4)))
        assert isinstance(loaded, UNetForSemanticSegmentation) and not loaded.training
        assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
        assert (processor.size["width"], processor.mask_threshold) == (24, 0.4)

    def test_a_model_of_transformers(self, tmp_path):
        loaded, processor = load_model(save(segformer(), tmp_path, SegformerImageProcessor(size=32)))
        assert isinstance(loaded, SegformerForSemanticSegmentation) and not loaded.training
        assert hasattr(processor, "post_process_semantic_segmentation")

    @pytest.mark.parametrize("name", ["nowhere", "no/where", "deep/down/nowhere"])
    def test_nothing_there(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(OSError, match=f"model {name}: no folder with a config.json, nor loadable from the Hub"):
            load_model(name)


class TestCommand:
    def test_results_and_rows(self, tmp_path, data):
        main([save(random_model(), tmp_path / "unet"), data, "--output", str(tmp_path / "out")])
        results, rows = scored(tmp_path / "out")
        assert results["run"]["name"] == results["run"]["model_type"] == "unet"
        assert results["data"]["sizes"] == {"train": 0, "validation": 0, "test": 12}
        assert set(results["metrics"]) == {"test"} and results["metrics"]["test"]["images"] == 12
        assert [row["name"] for row in rows] == [f"f{number:02d}" for number in range(12)]
        for name in ("dice", "iou", "precision", "recall", "accuracy"):
            mean = np.mean([float(row[name]) for row in rows])
            assert mean == pytest.approx(results["metrics"]["test"]["per_image"][name]["value"], abs=1e-6)
        mean = np.mean([float(row["loss"]) for row in rows])
        assert mean == pytest.approx(results["metrics"]["test"]["loss"]["value"], abs=1e-6)
        assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text(encoding="utf-8")

    @pytest.mark.parametrize("labels", [("background", "polyp"), ("background", "adenoma", "hyperplastic")])
    def test_a_model_of_transformers(self, tmp_path, data, labels):
        model = save(segformer(labels), tmp_path / "foreign", SegformerImageProcessor(size=32))
        main([model, data, "--output", str(tmp_path / "out"), "--batch_size", "5"])
        results, rows = scored(tmp_path / "out")
        assert results["run"]["model_type"] == "segformer"
        assert results["metrics"]["test"]["images"] == len(rows) == 12
        assert "per_class" not in results["metrics"]["test"]
        counts = [[int(row[name]) for name in ("true_positives", "false_negatives")] for row in rows]
        assert [sum(pair) for pair in counts] == [number * 10 for number in range(12)]

    def test_a_named_split(self, tmp_path, data):
        model = save(random_model(), tmp_path / "unet")
        main([model, data, "--output", str(tmp_path / "out"), "--split", "80/10/10", "--split_seed", "3"])
        results, rows = scored(tmp_path / "out")
        assert (results["data"]["split"], results["data"]["split_seed"]) == ("80/10/10", 3)
        assert results["data"]["sizes"] == {"train": 10, "validation": 1, "test": 1}
        assert [row["part"] for row in rows] == ["validation", "test"]
        assert {part: record["images"] for part, record in results["metrics"].items()} == {"validation": 1, "test": 1}

    def test_another_threshold_was_seen_before(self, tmp_path, data):
        model = save(random_model(), tmp_path / "unet")
        for threshold in ("0.5", "0.5", "0.4"):
            main([model, data, "--output", str(tmp_path / "runs" / threshold), "--threshold", threshold])
        first, last = (scored(tmp_path / "runs" / threshold)[0]["lock"] for threshold in ("0.5", "0.4"))
        assert (first["scorings"], first["earlier"]) == (2, []) and last["scorings"] == 1
        assert last["earlier"] == [{"sha256": first["sha256"], "scorings": 2, "changed": ["recipe"]}]
        digests = (tmp_path / "runs/0.4/data_digests.csv").read_text().splitlines()
        assert len(digests) == 13 and digests[1].startswith("f00,test,")

    def test_the_test_part_may_stay_unseen(self, tmp_path, data):
        model = save(random_model(), tmp_path / "unet")
        main([model, data, "--output", str(tmp_path / "out"), "--split", "80/10/10", "--score_test", "false"])
        results, rows = scored(tmp_path / "out")
        assert set(results["metrics"]) == {"validation"} == {row["part"] for row in rows}
        with pytest.raises(ValueError, match="leaves nothing of split 'all' to score"):
            main([model, data, "--output", str(tmp_path / "none"), "--score_test", "false"])

    def test_masks_of_more_classes_than_the_model(self, tmp_path, data):
        for number in range(12):
            mask = box((20 + number, 24), number, 10, value=1 + number % 2)
            Image.fromarray(mask).save(f"{data}/masks/f{number:02d}.png")
        model = save(random_model(), tmp_path / "unet")
        with pytest.raises(ValueError, match="labels out of range"):
            main([model, data, "--output", str(tmp_path / "out")])
        main([model, data, "--output", str(tmp_path / "out"), "--mask_labels", "3"])
        results, rows = scored(tmp_path / "out")
        assert results["run"]["settings"]["mask_labels"] == 3
        positives = [int(row["true_positives"]) + int(row["false_negatives"]) for row in rows]
        assert positives == [number * 10 for number in range(12)]

    def test_own_classes_and_grouped_classes(self, tmp_path, data):
        model = save(constant_model(0.0, 1.0, 0.0, num_labels=3), tmp_path / "unet")
        main([model, data, "--output", str(tmp_path / "own")])
        main([model, data, "--output", str(tmp_path / "grouped"), "--polyp_labels", "1", "2"])
        own, grouped = (scored(tmp_path / name)[0]["metrics"]["test"] for name in ("own", "grouped"))
        assert len(own["per_class"]) == 2 and "per_class" not in grouped
        assert own["per_class"][0]["pooled"] == grouped["pooled"]

    @pytest.mark.parametrize(
        ("options", "values"), [([], {2}), (["--polyp_labels", "1"], {0}), (["--polyp_labels", "1", "2"], {255})]
    )
    def test_masks_of_own_and_of_grouped_classes(self, tmp_path, data, options, values):
        model = save(constant_model(0.0, 0.0, 1.0, num_labels=3), tmp_path / "unet")
        main([model, data, "--output", str(tmp_path / "out"), "--masks", str(tmp_path / "masks"), *options])
        paths = sorted((tmp_path / "masks").iterdir())
        assert len(paths) == 12 and {int(value) for path in paths for value in np.unique(Image.open(path))} == values

    def test_a_boundary(self, tmp_path, data):
        names = {0: "background", 1: "polyp", 2: "boundary"}
        model = save(constant_model(0.0, 0.0, 1.0, id2label=names), tmp_path / "unet")
        main([model, data, "--output", str(tmp_path / "out"), "--boundary_width", "3"])
        results, rows = scored(tmp_path / "out")
        assert results["data"]["boundary_width"] == results["run"]["settings"]["boundary_width"] == 3
        assert [metrics["label"] for metrics in results["metrics"]["test"]["per_class"]] == ["polyp", "boundary"]
        counts = [int(row["true_positives_2"]) for row in rows]  # the boxes lie in a corner of the image
        assert counts == [number * 10 - max(0, number - 3) * 7 for number in range(12)]

    def test_threshold(self, tmp_path, data):
        model = save(constant_model(1.0), tmp_path / "unet")
        main([model, data, "--output", str(tmp_path / "out"), "--threshold", "0.74"])
        assert scored(tmp_path / "out")[0]["metrics"]["test"]["pooled"]["recall"]["value"] == 0

    @pytest.mark.parametrize("model", [random_model, segformer])
    def test_flips_and_the_reliability_picture(self, tmp_path, data, model):
        processor = PROCESSOR if model is random_model else SegformerImageProcessor(size=32)
        main([save(model(), tmp_path / "m", processor), data, "--output", str(tmp_path / "out"), "--flips", "true"])
        results, rows = scored(tmp_path / "out")
        assert results["run"]["settings"]["flips"] is True
        assert set(results["definitions"]) == {"polyps", "boundary", "calibration", "false_alarms"}
        for name in ("nsd", "hd95"):
            mean = np.mean([float(row[name]) for row in rows])
            assert mean == pytest.approx(results["metrics"]["test"]["boundary"][name]["value"], abs=1e-6)
        for name in ("polyps", "found", "touched", "false_polyps"):
            assert sum(int(row[name]) for row in rows) == results["metrics"]["test"]["polyps"][name]
        Image.open(tmp_path / "out" / "reliability.png").verify()

    def test_an_error_is_one_line(self, monkeypatch, tmp_path, data):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evaluate", "nowhere", data])
        with pytest.raises(SystemExit, match=r"^error: model nowhere: no folder with a config.json, nor .*\)$"):
            runpy.run_path(sys.modules[main.__module__].__file__, run_name="__main__")
