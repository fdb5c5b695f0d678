"""The kinds of figures on a card promise what the checks hold: each figure forged, one after another."""

import json
import shutil
from functools import cache

import pytest

from hub_unets.hub_repos.checks import calibration, figures, reproduce, verification
from hub_unets.hub_repos.checks.check import checked
from hub_unets.hub_repos.checks.static import check_network
from hub_unets.hub_repos.checks.verification import figure_kinds, verify_folder
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.card import render_marked, write_card
from hub_unets.hub_repos.repository.marks import FIGURES, marked_numbers
from hub_unets.training.measure.score import Scores
from tests.hub_repos.conftest import CALIBRATED_DATA
from tests.hub_repos.tampering import sign

FITTED = ("loss", "ece", "dice", "false_alarms")


@pytest.fixture(scope="module")
def calibrated(calibrated_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "repository"
    build(calibrated_checkpoint, folder)
    return folder


@pytest.fixture
def computed_once(monkeypatch):
    """What costs time is computed once: it does not depend on what results.json says, but for the temperature."""
    summaries, scored, alarms, before = {}, {}, {}, {}
    summary, score = Scores.summary, reproduce.score
    by_thresholds, score_before = calibration.by_thresholds, calibration.score_before

    def summarized(scores, names=None):
        counts = [count.tolist() for count in scores.counts]
        key = json.dumps([list(scores.names), counts, list(scores.losses), sorted(names or []), len(scores.tables)])
        if key not in summaries:
            summaries[key] = summary(scores, names)
        return json.loads(json.dumps(summaries[key]))

    def once(store, function, key):
        def call(*arguments, **options):
            name = key(*arguments)
            if name not in store:
                store[name] = function(*arguments, **options)
            return store[name]

        return call

    monkeypatch.setattr(Scores, "summary", summarized)
    monkeypatch.setattr(reproduce, "score", once(scored, score, lambda model, processor, rows, *_: str(rows["name"])))
    monkeypatch.setattr(calibration, "by_thresholds", once(alarms, by_thresholds, lambda *_: "all"))
    monkeypatch.setattr(calibration, "score_before", once(before, score_before, lambda *arguments: arguments[3]))


def numbers(value, place=()):
    """The place of every number in a JSON value."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, inner in pairs for found in numbers(inner, (*place, key))]
    return [place] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def forged(results, place):
    """A copy with another number at a place."""
    results = json.loads(json.dumps(results))
    inner = results
    for key in place[:-1]:
        inner = inner[key]
    old = inner[place[-1]]
    inner[place[-1]] = old + 1 if isinstance(old, int) else old + 0.03 if old < 0.9 else old - 0.03
    return results


def changed_kinds(before, after):
    """The kinds of figures that differ between two cards."""
    if len(before) != len(after):
        return set(FIGURES)
    return {old[0] for old, new in zip(before, after, strict=True) if old != new} & set(FIGURES)


def passes_static(folder, place):
    """Whether results.json, forged at a place, passes those static checks that read it."""
    network = [check_network] if place[0] == "run" else []
    checks = (figures.check_results_file, *network, figures.check_per_image)
    return all(checked(check.__name__, check, folder).passed for check in checks)


def test_a_forged_figure_fails_the_check_that_its_mark_names(calibrated, tmp_path, computed_once):
    folder = shutil.copytree(calibrated, tmp_path / "copy")
    results, shown = json.loads((folder / "results.json").read_text()), dict.fromkeys(FIGURES, 0)
    marked = cache(lambda text: marked_numbers(render_marked(folder, json.loads(text))))
    places = numbers(results)
    metrics = [place for place in places if place[0] == "metrics" and "bins" not in place]
    for place in [place for place in places if place[0] != "metrics"] + metrics[::7]:
        other = forged(results, place)
        kinds = changed_kinds(marked(json.dumps(results)), marked(json.dumps(other)))
        if not kinds:
            continue
        (folder / "results.json").write_text(json.dumps(other))
        for kind in kinds:
            shown[kind] += 1
        passes = passes_static(folder, place)
        assert "files" not in kinds or not passes, place
        if "data" in kinds and passes:
            assert not all(check.passed for check in reproduce.reproduce(folder, CALIBRATED_DATA)), place
    assert min(shown.values()) > 5, shown


def forge(folder, change):
    results = json.loads((folder / "results.json").read_text())
    change(results)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_card(folder, results)
    sign(folder)


def set_to(name, value):
    return lambda results: results["calibration"].update({name: value})


def lower_ece(results):
    """Every bin's mean probability is its share of polyps."""
    for metrics in results["metrics"].values():
        for row in metrics["calibration"]["bins"]:
            if row["pixels"]:
                share = row["polyp_pixels"] / row["pixels"]
                row["probability"] = min(max(share, row["above"]), row["up_to"])
        rows = [row for row in metrics["calibration"]["bins"] if row["pixels"]]
        gaps = [abs(row["pixels"] * row["probability"] - row["polyp_pixels"]) for row in rows]
        metrics["calibration"]["ece"] = sum(gaps) / sum(row["pixels"] for row in rows)
    results["calibration"]["ece_after"] = results["metrics"]["validation"]["calibration"]["ece"]


def by_size(name):
    return lambda results: results["calibration"]["by_size"][-1].update({f"{name}_before": 1.0})


FORGED = {
    **{f"{name}_before": (set_to(f"{name}_before", 0.432), "calibration") for name in FITTED},
    "false_alarms_after": (set_to("false_alarms_after", 0.123), "calibration"),
    "temperature": (set_to("temperature", 2.5), "calibration"),
    "recall before": (by_size("recall"), "calibration"),
    "dice before": (by_size("dice"), "calibration"),
    "best": (lambda results: results["run"]["best"].update(dice=0.99), "best epoch"),
    "ece": (lower_ece, "figures of validation"),
}


@pytest.mark.parametrize(("change", "name"), FORGED.values(), ids=FORGED)
def test_with_data_a_card_forged_as_a_whole_fails(change, name, calibrated, tmp_path, computed_once):
    folder = shutil.copytree(calibrated, tmp_path / "copy")
    forge(folder, change)
    checks = verify_folder(folder, run=False, data=CALIBRATED_DATA)
    names = [check.name for check in checks]
    failed = {check.name for check in checks if not check.passed}
    assert name in failed and failed <= set(names[names.index("split") + 1 :])  # the static checks pass
    assert "figures ᵈ" not in names


def test_thresholds_that_others_beat_are_found(calibrated, tmp_path, computed_once):
    """Forged in processor, results and rows alike they would still not be the ones of fewest false alarms."""
    fitted = json.loads((calibrated / "results.json").read_text())["calibration"]
    dice, alarms = calibration.np.full((9, 100), 0.5), calibration.np.full((9, 100), 0.5)
    alarms[3, 20] = 0.1
    with pytest.raises(ValueError, match=r"mark 0.5000 of the crops; others give 0.5000, and mark 0.1000"):
        calibration._check_choice(dice, alarms, (0, 0))
    calibration._check_choice(dice, alarms, (3, 20))
    dice[0, 0] = 0.6
    with pytest.raises(ValueError, match="the thresholds give a Dice of 0.5000"):
        calibration._check_choice(dice, alarms, (3, 20))
    with pytest.raises(ValueError, match="none of those that are tried"):
        calibration._place(calibration.THRESHOLDS, fitted["threshold"] + 0.01)


def test_each_kind_of_figure_has_its_line(calibrated, computed_once):
    without, data = (verify_folder(calibrated, run=False, data=data) for data in (None, CALIBRATED_DATA))
    assert [check for check in data if not check.passed] == []
    assert [check.name for check in data][-6:-3] == ["figures of test", "calibration", "best epoch"]
    lines = [str(check) for check in without[-3:]]
    assert lines[0].startswith("ok   figures ʳ: ") and lines[0].endswith(" on the card follow from its files")
    assert lines[1].startswith("note figures ᵈ: ") and lines[1].endswith("not computed again: that takes --data")
    assert lines[2].startswith("note figures ˢ: ") and "nothing can check them" in lines[2]
    assert str(data[-2]).startswith("ok   figures ᵈ: ") and str(data[-2]).endswith("on the card, computed again")
    assert figure_kinds(calibrated, True) == data[-3:] and verification.FIGURES == FIGURES
