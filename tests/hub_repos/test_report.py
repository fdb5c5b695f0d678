"""The accuracy page, from records: its sections and figures by hand, and the committed page matches its records."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hub_unets.hub_repos import report
from hub_unets.hub_repos.accuracy import page as pages
from hub_unets.hub_repos.accuracy.records import mean_dices
from hub_unets.training.records.results import read_results
from tests.hub_repos.checks.test_figures import write

ROOT = Path(__file__).parents[2]
MARKS = f"Before\n{pages.START}\nold\n{pages.END}\nafter\n"


def record(folder, **changes):
    """A record as a run writes it; `changes` are keys joined by __, with their new values."""
    write(folder, report=True)
    results = json.loads((folder / "results.json").read_text())
    results["run"] |= {
        "seed": 0,
        "gmacs": 0.5,
        "settings": {"train_size": "8", "image_size": "9", "num_train_epochs": "1"},
    }
    results["cost"] = {"training_seconds": 600.0}
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        holder = results
        for name in parents:
            holder = holder[name]
        holder[key] = value
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def records(tmp_path):
    """Two recipes: one of two seeds with ablations, an evaluation elsewhere and flips, one of a single run."""
    dice = "metrics__test__per_image__dice__value"
    for seed, value in enumerate((0.8, 0.9)):
        folder = tmp_path / f"mine/seeds/mine-{seed}"
        record(folder, run__seed=seed, **{dice: value})
        record(folder / "elsewhere", data__split="all", data__source="other", run__settings={"mask_labels": 3})
        record(folder / "flips", run__settings={"flips": True})
    record(tmp_path / "mine/ablations/as_chosen", metrics__validation__per_image__dice__value=0.5)
    record(tmp_path / "mine/ablations/no_average", metrics__validation__per_image__dice__value=0.6)
    record(tmp_path / "old")
    (tmp_path / "README.md").write_text(MARKS)
    return tmp_path


def test_every_section_is_there(records):
    report.write(records, records / "README.md")
    page = (records / report.PAGE).read_text(encoding="utf-8")
    for heading in ("# Accuracy", "## mine", "### Another hospital: other, 3 frames", "### Flips", "### Ablations"):
        assert f"{heading}" in page
    assert "## old" not in page
    assert "| Dice | " in page and "0.8500 (0.8000, 0.9000)" in page
    assert "`mine` − `old` | +0.0000 (+0.0000 to +0.0000) | no |" in page
    assert "| no average | 0.6000 | +0.0000 (+0.0000 to +0.0000) |" in page
    assert "hub-unets evaluate RUN other --mask_labels 3" in page
    assert Image.open(records / report.PICTURE).width > 800


def test_readme_gets_the_table_between_the_marks_alone(records):
    report.write(records, records / "README.md")
    text = (records / "README.md").read_text(encoding="utf-8")
    assert text.startswith("Before\n") and text.endswith("\nafter\n") and "old\n" not in text.replace("`old`", "")
    (row,) = [line for line in text.splitlines() if line.startswith("| `mine`")]
    assert row.split(" | ")[2] == "2" and row.endswith(" |")
    assert "Dice, elsewhere" in text
    expected = text
    report.write(records, records / "README.md")
    assert (records / "README.md").read_text(encoding="utf-8") == expected


def test_readme_without_marks_leaves_everything_as_it_is(records):
    (records / "README.md").write_text("no marks")
    with pytest.raises(ValueError, match="README.md must hold the lines"):
        report.write(records, records / "README.md")
    assert not (records / report.PAGE).exists() and (records / "README.md").read_text() == "no marks"


def test_without_records(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        report.load(tmp_path)


def test_the_interval_is_of_the_mean_over_seeds_of_each_image(records):
    recipe = report.load(records)[0]
    rows = [run.dices("test") for run in recipe.runs]
    assert mean_dices([{"a": 0.2, "b": 1.0}, {"a": 0.4, "b": 0.0}]) == {"a": pytest.approx(0.3), "b": 0.5}
    assert recipe.dice_with_interval("test")["value"] == pytest.approx(sum(rows[0].values()) / 3)


def test_the_committed_page_and_table_are_those_of_the_records():
    recipes = report.load(ROOT / "hub_repos/published")
    assert (ROOT / "hub_repos/published" / report.PAGE).read_text(encoding="utf-8") == report.page(recipes)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == report.with_table(readme, report.short_table(recipes))


def test_what_is_published_is_the_median_of_its_seeds():
    from hub_unets.hub_repos.keep import median

    for recipe in report.load(ROOT / "hub_repos/published"):
        if recipe.published is not None:
            assert median([run.folder for run in recipe.runs]) == recipe.published.folder
            assert read_results(recipe.folder / "results.json")["run"]["name"] == recipe.published.name
