"""The accuracy page, from records: its sections and figures by hand, and the committed page matches its records."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hub_unets.hub_repos import report
from hub_unets.hub_repos.accuracy import page as pages
from hub_unets.hub_repos.accuracy.cards import FIELDS
from hub_unets.hub_repos.accuracy.records import mean_dices
from hub_unets.training.errors import UserError
from hub_unets.training.records.results import SCHEMA, read_results
from hub_unets.training.settings.recipes import RECIPES
from tests.hub_repos.checks.figure_records import write

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


CARD = {"card": "someone/unet", "figure": 0.9411, "metric": "pooled.dice", "terms": "pooled Dice", "differs": "all"}


def test_a_card_beside_our_run_of_the_highest_validation_dice(records):
    for name, dice in (("low", 0.5), ("high", 0.6)):
        record(records / "cards/theirs" / name, run__name=name, metrics__validation__per_image__dice__value=dice)
    write_cards(records, theirs=CARD, unrun=CARD | {"figure": None})
    report.write(records, records / "README.md")
    page = (records / report.PAGE).read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `someone/unet`")]
    metrics = read_results(records / "cards/theirs/high/results.json")["metrics"]["test"]
    pooled, mean = (pages.interval(metrics[kind]["dice"]) for kind in ("pooled", "per_image"))
    expected = [
        "`someone/unet`",
        "0.9411",
        "pooled Dice",
        pooled,
        mean,
        "3",
        "`high`, the best of 2 on validation",
        "all",
    ]
    assert row.strip("| ").split(" | ") == expected


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({}, "has no card 'theirs', of which runs are kept: add it"),
        (
            {"theirs": {"card": "someone/unet"}},
            "theirs must have the fields card, figure, metric, terms, differs",
        ),
        (
            {"theirs": CARD | {"metric": "with_background.pooled.dice"}},
            "no with_background.pooled.dice, which cards",
        ),
    ],
)
def test_a_card_that_can_not_be_answered_is_named(records, cards, message):
    record(records / "cards/theirs/run")
    write_cards(records, **cards)
    with pytest.raises(UserError, match=message):
        report.load_cards(records)


def write_cards(folder, **cards):
    (folder / "cards").mkdir(exist_ok=True)
    (folder / "cards/cards.yaml").write_text(yaml.safe_dump(cards))


def test_the_committed_cards_are_of_recipes_and_in_figures_that_records_hold():
    cards = yaml.safe_load((ROOT / "hub_repos/published/cards/cards.yaml").read_text(encoding="utf-8"))
    for name, card in cards.items():
        assert (RECIPES / f"{name}.yaml").is_file() and set(card) == set(FIELDS)
        first, *rest = card["metric"].split(".")
        assert first in SCHEMA["$defs"]["part"]["properties"] and rest[-1] == "dice"


def test_the_held_out_part_of_a_second_data_set_is_shown_beside_other_hospitals(records):
    extra = [{"source": "clinicdb", "split": "clinicdb", "images": 546, "sha256": "0" * 64}]
    for seed in (0, 1):
        folder = record(records / f"mine/seeds/mine-{seed}", run__seed=seed, data__extra=extra)
        record(
            folder / "clinicdb", data__split="clinicdb", data__source="clinicdb", run__settings={"mask_labels": None}
        )
    report.write(records, records / "README.md")
    page = (records / report.PAGE).read_text(encoding="utf-8")
    assert "`hub-unets evaluate RUN clinicdb --split clinicdb`. Nothing was trained, fitted or chosen on these" in page
    assert "these frames, though on others of the same data set" in page
    assert "`hub-unets evaluate RUN other --mask_labels 3`: every class of polyp is polyp. Nothing" in page


def test_folds_have_a_section_of_their_own(records):
    fitted = {"members": ["a", "b"], "mask_threshold": 0.4, "score_threshold": 0.3, "rule": "By a rule."}
    folder = record(records / "mine/folds/all", cross_validation=fitted, data__split="5 folds")
    report.write(records, records / "README.md")
    page = (records / report.PAGE).read_text(encoding="utf-8")
    dice = read_results(folder / "results.json")["metrics"]["test"]["per_image"]["dice"]
    assert "### Cross-validation: 3 images, 5 folds" in page and f"| Dice | {pages.interval(dice)} |" in page
    assert "Pixels above 0.4, regions from 0.3. By a rule." in page and "(mine/folds/all/hardest.png)" in page


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
    folder = ROOT / "hub_repos/published"
    recipes = report.load(folder)
    assert (folder / report.PAGE).read_text(encoding="utf-8") == report.page(recipes, report.load_cards(folder))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == report.with_table(readme, report.short_table(recipes))


def test_what_is_published_is_the_median_of_its_seeds():
    from hub_unets.hub_repos.keep import median

    for recipe in report.load(ROOT / "hub_repos/published"):
        if recipe.published is not None:
            assert median([run.folder for run in recipe.runs]) == recipe.published.folder
            assert read_results(recipe.folder / "results.json")["run"]["name"] == recipe.published.name
