"""Cross-validation of real runs: every image by the network that never saw it, one pair of thresholds, an ensemble."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hub_unets.training import soup
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError
from hub_unets.training.measure.calibration import by_thresholds, choose
from hub_unets.training.measure.ensemble import ENSEMBLE
from hub_unets.training.measure.metrics import count_pixels, metrics_from_counts
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.score import Scores
from hub_unets.training.records import folds
from hub_unets.training.records.locks import LOCKED
from hub_unets.training.records.results import read_results
from tests.training import runs

DATA = runs.TINY["data"]
OPTIONS = {"calibrate": "true", "average_last": 2, "score_test": "false", "num_train_epochs": 10}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def source():
    return load_source(DATA)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runs of two folds, calibrated, the mean of two epochs' weights, their test parts unseen."""
    folder = tmp_path_factory.mktemp("folds")
    for number in (1, 2):
        result = runs.run(folder / f"fold-{number}", split=f"fold-{number}-of-2", **OPTIONS)
        assert result.code == 0, result.stderr
    return [folder / "fold-1", folder / "fold-2"]


@pytest.fixture(scope="module")
def together(trained, source, tmp_path_factory):
    """What is printed of both folds, and the folder that is left."""
    output = tmp_path_factory.mktemp("together") / "out"
    return folds.write_out_of_fold("mine", trained, source, output), output


def rows_of(output):
    with (output / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_scored_once_by_the_network_that_never_saw_it(together, trained, source):
    printed, output = together
    results, rows = read_results(output / "results.json"), rows_of(output)
    names = [row["name"] for part in source.values() for row in part]
    assert sorted(row["name"] for row in rows) == sorted(names) and {row["part"] for row in rows} == {"test"}
    metrics = results["metrics"]["test"]
    dice = np.mean([float(row["dice"]) for row in rows])
    assert metrics["images"] == 28 and 0 < metrics["per_image"]["dice"]["value"] == pytest.approx(dice, abs=1e-5)
    assert f"Dice {metrics['per_image']['dice']['value']:.4f}" in printed and "calibration" in metrics
    fold = folds.read_fold(trained[1], source)
    model, processor = fold.load({name: results["cross_validation"][name] for name in folds.PAIR})
    best = max((line for line in rows if line["name"] in fold.names), key=lambda line: float(line["dice"]))
    row = fold.rows[fold.test[fold.names[:].index(best["name"])]]
    case = folds.case(row, model, processor, 0.0)
    own = metrics_from_counts(count_pixels(case["prediction"], case["truth"]))["dice"][0]
    assert float(best["dice"]) == pytest.approx(own, abs=1e-6)
    mask = np.asarray(Image.open(output / f"masks/{row['name']}.png"))
    assert np.array_equal(mask, case["prediction"] * 255)


def test_one_pair_of_thresholds_is_best_on_the_mean_over_the_folds_validation(together, trained, source):
    record = read_results(together[1] / "results.json")["cross_validation"]
    assert record["rule"] == folds.RULE and record["members"] == ["fold-1", "fold-2"]
    both = [folds.read_fold(folder, source) for folder in trained]
    tables = [by_thresholds(*fold.load({}), fold.rows.select(fold.validation)) for fold in both]
    dice, alarms = np.mean(tables, axis=0)
    chosen = choose(dice, alarms)
    pair = float(folds.THRESHOLDS[chosen[0]]), float(folds.SCORES[chosen[1]])
    assert (record["mask_threshold"], record["score_threshold"]) == pair
    assert (record["dice"], record["false_alarms"]) == pytest.approx((dice[chosen], alarms[chosen]))


def test_cost_and_data_are_those_of_all_folds(together, trained):
    results = read_results(together[1] / "results.json")
    single = [read_results(folder / "results.json") for folder in trained]
    for name in ("parameters", "gmacs"):
        assert results["run"][name] == pytest.approx(sum(result["run"][name] for result in single))
    assert results["cost"]["training_seconds"] == sum(result["cost"]["training_seconds"] for result in single)
    assert results["data"]["split"] == "2 folds" and results["data"]["sizes"]["test"] == 28
    assert all(result["run"]["best"]["averaged"] == 2 and "calibration" in result for result in single)


def test_the_folder_is_the_model_that_is_their_mean(together):
    _, output = together
    ensemble, processor = load_model(output)
    record = read_results(output / "results.json")["cross_validation"]
    assert len(ensemble.models) == 2
    assert [processor.mask_threshold, processor.score_threshold] == [record[name] for name in folds.PAIR]
    names = [member["path"].rpartition("/")[2] for member in json.loads((output / ENSEMBLE).read_text())["members"]]
    assert names == ["fold-1", "fold-2"]
    assert Image.open(output / folds.PICTURE).height > 800


def test_each_folds_test_part_is_scored_under_a_lock(together):
    lines = (together[1] / "scorings.log").read_text().splitlines()
    matches = list(map(LOCKED.fullmatch, lines))
    assert len(matches) == 2 and all(matches) and len({match["split"] for match in matches}) == 2


def test_a_repeated_command_scores_again_only_where_a_fold_has_changed(together, trained, source, monkeypatch):
    printed, output = together
    scored = []
    monkeypatch.setattr(folds, "score_folds", lambda *arguments: scored.append(1) or pytest.skip("scored again"))
    assert folds.write_out_of_fold("mine", trained, source, output) == printed and not scored
    monkeypatch.setattr(folds, "describe", lambda *_: {"members": [{"sha256": {"model.safetensors": "0" * 64}}]})
    assert not folds.is_up_to_date(output, trained)


def test_without_calibration_thresholds_stay_as_they_are(trained, source, tmp_path):
    results = read_results(trained[0] / "results.json")
    fold = folds.read_fold(trained[0], source)
    plain = fold._replace(results={name: value for name, value in results.items() if name != "calibration"})
    _, processor = load_model(trained[0])
    own = {name: getattr(processor, name) for name in folds.PAIR}
    assert folds.common_thresholds([plain]) == (own, {})


def test_other_data_and_an_image_in_two_folds_are_refused(trained, source, tmp_path):
    with pytest.raises(UserError, match="the data split otherwise than when .*fold-1 was trained"):
        folds.write_out_of_fold("mine", trained, load_source("phantoms?count=19&size=64&seed=0"), tmp_path / "out")
    with pytest.raises(UserError, match="mine: .* is a test image of two folds"):
        folds.write_out_of_fold("mine", [trained[0]] * 2, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_are_joined_and_sums_added():
    one, two = Scores(names=["a"], losses=[0.5]), Scores(names=["b"], losses=[0.25])
    one.logits += 1
    two.logits += 2
    one.extend(two)
    assert one.names == ["a", "b"] and one.losses == [0.5, 0.25] and (one.logits == 3).all()


class TestSoup:
    """The mean of the folds' weights, taken on their validation parts together."""

    def test_of_folds(self, trained, tmp_path, monkeypatch):
        for name in ("one", "two"):
            shutil.copytree(trained[name == "two"], tmp_path / name)
        shutil.copyfile(tmp_path / "one/model.safetensors", tmp_path / "two/model.safetensors")
        monkeypatch.setattr(soup, "draw", lambda *_: None)
        soup.main(
            [str(tmp_path / "one"), str(tmp_path / "two"), "--data", DATA, "--output_dir", str(tmp_path / "mean")]
        )
        results, source = read_results(tmp_path / "mean/results.json"), load_source(DATA)
        parts = [folds.read_fold(folder, source) for folder in trained]
        both = {index for part in parts for index in part.validation}
        assert results["metrics"].keys() == {"validation"} and results["metrics"]["validation"]["images"] == len(both)
        assert results["data"]["split"] == "2 folds" and results["data"]["sizes"]["test"] == 0
        assert "not out of fold" in results["run"]["settings"]["soup_validation"]

    def test_of_folds_of_another_count(self, trained, tmp_path):
        other = shutil.copytree(trained[1], tmp_path / "other")
        results = json.loads((other / "results.json").read_text())
        results["data"]["split"] = "fold-1-of-3"
        (other / "results.json").write_text(json.dumps(results))
        with pytest.raises(UserError, match="can't be averaged: results.json, data.split is 2 folds and 3 folds"):
            soup.main([str(trained[0]), str(other), "--data", DATA, "--output_dir", str(tmp_path / "mean")])
