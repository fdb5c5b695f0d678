"""What is written fits the schema, what does not fit is refused by its place, and no path of this machine is kept."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hub_unets.training.data.partition import Partition
from hub_unets.training.measure.metrics import COUNTS, NAMES, WITH_BACKGROUND
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.results import (
    check_results,
    data_record,
    environment_record,
    read_history,
    read_per_image,
    read_results,
    summary_lines,
    write_results,
)

PARTITION = Partition("80/10/10", 42, (0, 1), (2,), (3,), tuple("abcd"), tuple("1234"), twins=("d",))
ON_CPU = SimpleNamespace(device=torch.device("cpu"))


def scores_of(names, counts, losses=None, class_names=()):
    """Scores of images of 4 x 25 pixels."""
    count = len(names)
    counts = [np.array(rows, np.int64) for rows in counts]
    return Scores(list(names), [(4, 25)] * count, counts, list(losses or [0.5] * count), list(class_names))


def parts(validation=True):
    test = scores_of(["a", "b", "c"], [[[8, 2, 0, 90]], [[1, 0, 9, 90]], [[0, 0, 0, 100]]], [0.25, 0.5, 0.75])
    return {"validation": scores_of(["v"], [[[6, 2, 4, 88]]])} | {"test": test} if validation else {"test": test}


def results(**changes):
    """A results.json without its metrics."""
    return {
        "run": {"name": "r", "model_type": "unet", "settings": {"seed": "0"}, "best": None},
        "data": data_record("owner/name", PARTITION),
        "environment": environment_record(ON_CPU),
        "cost": {"training_seconds": 1.5},
        **changes,
    }


@pytest.fixture
def written(tmp_path):
    """A whole results.json as it was read back."""
    write_results(tmp_path, results(), parts(), twins=("b",))
    return read_results(tmp_path / "results.json")


def rows_of(folder):
    with (folder / "per_image.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestWriteResults:
    def test_is_read_back(self, tmp_path, written):
        assert written["schema_version"] == 1
        assert {name: written[name] for name in results()} == results()
        assert written["metrics"]["test"]["images"] == 3
        dice = written["metrics"]["test"]["per_image"]["dice"]
        assert dice["value"] == pytest.approx((16 / 18 + 2 / 11 + 1) / 3)
        assert 0 < dice["low"] < dice["value"] < dice["high"] <= 1
        assert written["metrics"]["test"]["pooled"]["dice"]["value"] == pytest.approx(18 / 29)
        assert written["metrics"]["test"]["loss"]["value"] == 0.5
        assert written["metrics"]["validation"]["per_image"]["dice"]["value"] == pytest.approx(2 / 3)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["per_image.csv", "results.json"]

    def test_twins_are_left_out_in_a_part_of_their_own(self, written):
        without = written["metrics"]["test_without_twins"]
        assert without["images"] == 2
        assert without["per_image"]["dice"]["value"] == pytest.approx((16 / 18 + 1) / 2)
        assert without["loss"]["value"] == pytest.approx(0.5)

    @pytest.mark.parametrize("twins", [(), ("a", "b", "c")])
    def test_no_such_part_without_twins_or_without_others(self, tmp_path, twins):
        write_results(tmp_path, results(), parts(validation=False), twins)
        assert set(read_results(tmp_path / "results.json")["metrics"]) == {"test"}

    def test_classes(self, tmp_path):
        counts = [[[8, 2, 0, 90], [1, 0, 9, 90]], [[8, 2, 0, 90], [0, 0, 0, 100]]]
        scores = scores_of("ab", counts, class_names=("neoplastic", "other"))
        lines = write_results(tmp_path, results(), {"test": scores}).splitlines()
        test = read_results(tmp_path / "results.json")["metrics"]["test"]
        assert [entry["pooled"]["dice"]["value"] for entry in test["per_class"]] == pytest.approx([16 / 18, 2 / 11])
        assert [entry["label"] for entry in test["per_class"]] == ["neoplastic", "other"]
        assert [entry["present"]["images"] for entry in test["per_class"]] == [2, 1]
        assert lines[2] == (
            "  other                         Dice 0.5909 (0.1818-1.0000)   where present 0.1818 (1 of 2 images)   "
            "pooled Dice 0.1818"
        )
        row, other = rows_of(tmp_path)
        for number, class_counts in enumerate(counts[0], start=1):
            assert [int(row[f"{name}_{number}"]) for name in COUNTS] == class_counts
        assert float(row["dice"]) == pytest.approx((16 / 18 + 2 / 11) / 2, abs=1e-6)
        assert [row[f"dice_{number}"] for number in (1, 2)] == ["0.888889", "0.181818"]
        assert other["dice_2"] == "1.000000"

    def test_means_with_the_background_are_those_of_all_classes_and_read_back(self, tmp_path):
        counts = [[[8, 2, 0, 90], [1, 0, 9, 90]], [[8, 2, 0, 90], [0, 0, 0, 100]]]
        scores = scores_of("ab", counts, class_names=("neoplastic", "other"))
        scores.background = [np.array([80, 9, 2, 9]), np.array([90, 0, 2, 8])]
        write_results(tmp_path, results(), {"test": scores})
        written = read_results(tmp_path / "results.json")
        figures, dices = written["metrics"]["test"]["with_background"], (160 / 171, 180 / 182)
        classes = np.array([[dices[0], 16 / 18, 2 / 11], [dices[1], 16 / 18, 1]])
        assert figures["per_image"]["dice"]["value"] == pytest.approx(classes.mean())
        assert figures["pooled"]["dice"]["value"] == pytest.approx(np.mean([340 / 353, 16 / 18, 2 / 11]))
        assert (
            figures["pooled"]["dice"]["low"] < figures["pooled"]["dice"]["value"] < figures["pooled"]["dice"]["high"]
        )
        assert written["definitions"]["with_background"] == WITH_BACKGROUND
        (read,) = read_per_image(tmp_path / "per_image.csv")[0].values()
        assert read.summary()["with_background"] == figures

    def test_a_class_that_no_image_holds(self, tmp_path):
        scores = scores_of("a", [[[8, 2, 0, 90], [0, 0, 0, 100]]], class_names=("one", "two"))
        lines = write_results(tmp_path, results(), {"test": scores}).splitlines()
        assert read_results(tmp_path / "results.json")["metrics"]["test"]["per_class"][1]["present"]["dice"] is None
        assert "where present - (0 of 1 images)" in lines[2]

    def test_a_refused_result_leaves_what_was_there(self, tmp_path):
        write_results(tmp_path, results(), parts())
        before = (tmp_path / "results.json").read_bytes()
        with pytest.raises(ValueError, match="cost.training_seconds"):
            write_results(tmp_path, results(cost={"training_seconds": "long"}), parts(validation=False))
        assert (tmp_path / "results.json").read_bytes() == before
        assert len(rows_of(tmp_path)) == 4


class TestPerImage:
    def test_columns_and_rows(self, tmp_path):
        write_results(tmp_path / "new" / "folder", results(), parts(), twins=("b",))
        rows = rows_of(tmp_path / "new" / "folder")
        assert list(rows[0]) == ["name", "part", "height", "width", "twin", *NAMES, "loss", *COUNTS]
        assert [(row["part"], row["name"], row["twin"]) for row in rows] == [
            ("validation", "v", "0"), ("test", "a", "0"), ("test", "b", "1"), ("test", "c", "0")
        ]  # fmt: skip
        assert {(row["height"], row["width"]) for row in rows} == {("4", "25")}
        assert [row["dice"] for row in rows] == ["0.666667", "0.888889", "0.181818", "1.000000"]
        assert [row["loss"] for row in rows] == ["0.500000", "0.250000", "0.500000", "0.750000"]
        assert [rows[1][name] for name in COUNTS] == ["8", "2", "0", "90"]

    @pytest.mark.parametrize("name", ['comma, "quotes"', "größe", "0012"])
    def test_any_name(self, tmp_path, name):
        write_results(tmp_path, results(), {"test": scores_of([name], [[[1, 0, 0, 99]]])})
        assert rows_of(tmp_path)[0]["name"] == name


class TestSchema:
    @pytest.mark.parametrize(
        ("change", "place", "reason"),
        [
            (lambda found: found.pop("metrics"), "top level", "'metrics' is a required property"),
            (lambda found: found["metrics"].pop("test"), "metrics", "'test' is a dependency of 'test_without_twins'"),
            (lambda found: found["metrics"].clear(), "metrics", "should be non-empty"),
            (lambda found: found.update(schema_version=2), "schema_version", "1 was expected"),
            (lambda found: found["data"].update(sha256="abc"), "data.sha256", "'abc' does not match"),
            (lambda found: found["data"].update(sha256="A" * 64), "data.sha256", "does not match"),
            (lambda found: found["metrics"].update(tests={}), "metrics", "'tests' was unexpected"),
            (
                lambda found: found["metrics"]["test"]["pooled"]["iou"].update(value=1.01),
                "metrics.test.pooled.iou.value",
                "1.01 is greater than the maximum of 1",
            ),
            (
                lambda found: found["metrics"]["test_without_twins"]["per_image"]["recall"].update(low=-0.1),
                "metrics.test_without_twins.per_image.recall.low",
                "less than the minimum of 0",
            ),
            (
                lambda found: found["metrics"]["validation"]["per_image"].pop("f1"),
                "metrics.validation.per_image",
                "'f1' is a required property",
            ),
            (lambda found: found["metrics"]["test"].update(images=0), "metrics.test.images", "minimum of 1"),
            (
                lambda found: found["metrics"]["test"].update(per_class=[{}]),
                "metrics.test.per_class.0",
                "'label' is a required property",
            ),
            (
                lambda found: found["data"].update(boundary_width=0),
                "data.boundary_width",
                "less than the minimum of 1",
            ),
            (lambda found: found["environment"].pop("torch"), "environment", "'torch' is a required property"),
            (lambda found: found["data"]["sizes"].update(test="x"), "data.sizes.test", "'x' is not of type 'integer'"),
        ],
    )
    def test_refused_by_its_place(self, tmp_path, written, change, place, reason):
        check_results(written)
        change(written)
        (tmp_path / "other.json").write_text(json.dumps(written), encoding="utf-8")
        with pytest.raises(ValueError, match=f"other.json: {re.escape(place)}: .*{reason}"):
            read_results(tmp_path / "other.json")

    def test_not_json(self, tmp_path):
        (tmp_path / "results.json").write_text('{"run": ', encoding="utf-8")
        with pytest.raises(ValueError, match="results.json is not JSON"):
            read_results(tmp_path / "results.json")


def test_summary_lines(tmp_path, written):
    lines = list(summary_lines(written))
    assert [line[:19].strip() for line in lines] == ["validation", "test", "test without twins"]
    dice = written["metrics"]["test"]["per_image"]["dice"]
    assert lines[1][19:] == (
        f"    3 images   Dice 0.6902 ({dice['low']:.4f}-{dice['high']:.4f})   IoU 0.6333   pooled Dice 0.6207   "
        "precision 0.9333   recall 0.7000   loss 0.5000"
    )
    assert write_results(tmp_path, results(), parts(), twins=("b",)) == "\n".join(lines)


class TestRecords:
    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_a_local_path_is_kept_by_its_last_name(self, tmp_path, kind):
        path = tmp_path / "my-data"
        path.mkdir() if kind == "folder" else path.write_text("")
        record = data_record(str(path), PARTITION)
        assert record["source"] == "my-data"
        assert str(tmp_path) not in json.dumps(record)

    @pytest.mark.parametrize("data", ["owner/name", "phantoms?count=240&size=256&seed=0"])
    def test_anything_else_is_kept_whole(self, tmp_path, monkeypatch, data):
        monkeypatch.chdir(tmp_path)
        assert data_record(data, PARTITION)["source"] == data

    def test_the_split(self):
        assert data_record("owner/name", PARTITION) == {
            "source": "owner/name",
            "split": "80/10/10",
            "split_seed": 42,
            "sizes": {"train": 2, "validation": 1, "test": 1},
            "sha256": PARTITION.sha256,
            "twins": ["d"],
            "boundary_width": None,
        }
        assert data_record("owner/name", PARTITION, 10)["boundary_width"] == 10

    def test_the_environment(self):
        record = environment_record(ON_CPU)
        assert record["torch"] == torch.__version__.partition("+")[0] or record["torch"] == torch.__version__
        assert record["device"].startswith("cpu: ") and len(record["device"]) > len("cpu: ")
        assert {"python", "cores", "transformers", "timm", "albumentations"} <= set(record)


def test_the_log_stands_beside_the_results_and_comes_back(tmp_path):
    log = [{"loss": 0.1, "epoch": 0.5}, {"eval_loss": None, "eval_dice": 1 / 3, "epoch": 1.0}]
    write_results(tmp_path, results(), parts(), history=log)
    assert "history" not in json.loads((tmp_path / "results.json").read_text())["run"]
    assert read_history(tmp_path, {}) == [log[0], {"eval_dice": 1 / 3, "epoch": 1.0}]
    (tmp_path / "history.csv").write_text("epoch\nfirst\n")
    with pytest.raises(ValueError, match="history.csv: a value is no number .*first"):
        read_history(tmp_path, {})


def test_the_log_of_an_older_run_is_in_its_results(tmp_path):
    assert read_history(tmp_path, {"run": {"history": [{"epoch": 1.0}]}}) == [{"epoch": 1.0}]
    assert read_history(tmp_path, {"run": {}}) == []
