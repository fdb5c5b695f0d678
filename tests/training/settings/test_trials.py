"""From a recipe with a grid or a space to trials and command lines."""

import optuna
import pytest

from hub_unets.training.settings.arguments import parse
from hub_unets.training.settings.trials import parse_sweep, settings_of

GRID = """
variant: unet
model: {depth: 2}
grid:
  learning_rate: [0.01, 0.001]
  model.base_channels: [4, 8]
"""
SPACE = """
trials: 3
model: {depth: 2}
space:
  learning_rate: {low: 1e-4, high: 1.0e-2, log: true}
  model.base_channels: {low: 2, high: 8, step: 2}
  weight_decay: [0.0, 0.1]
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def ask(sweep, fixed=None, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.enqueue_trial(fixed or {})
    return settings_of(sweep, study.ask())


def test_a_grid_has_every_combination_as_one_command_line(recipe, tmp_path):
    path = recipe(GRID)
    sweep = parse_sweep([path, "--seed", "3", "--output_dir", str(tmp_path / "out")])
    assert list(sweep.cells) == ["0.01-4", "0.01-8", "0.001-4", "0.001-8"]
    settings = ask(sweep, sweep.cells["0.001-8"])
    assert settings == {"learning_rate": ["0.001"], "model.base_channels": ["8"]}
    arguments, model, _, texts = parse(sweep.arguments(settings, sweep.folder("0.001-8")))
    assert (arguments.learning_rate, arguments.seed, model) == (0.001, 3, {"depth": 2, "base_channels": 8})
    assert texts["output_dir"] == str(tmp_path / "out" / "trials" / "0.001-8")


def test_the_command_line_changes_a_dimension(recipe):
    sweep = parse_sweep([recipe(GRID), "--grid.learning_rate", "0.5", "--grid.model.base_channels", "[2, 4]"])
    assert list(sweep.cells) == ["0.5-2", "0.5-4"]


def test_choices_may_have_labels_and_take_a_field_of_the_recipe_back(recipe):
    choice = '{as it is: {}, wide: {model.base_channels: 8}, "no depth": {model.depth: null}}'
    sweep = parse_sweep([recipe(f"model: {{depth: 2}}\ngrid:\n  choice: {choice}")])
    assert list(sweep.cells) == ["as_it_is", "wide", "no_depth"]
    models = [parse(sweep.arguments(ask(sweep, cell), "out"))[1] for cell in sweep.cells.values()]
    assert models == [{"depth": 2}, {"depth": 2, "base_channels": 8}, {}]


def test_a_value_may_set_several_settings(recipe):
    text = GRID + "  encoder: [{model.backbone: resnet18, backbone_weights: none}, {model.backbone: null}]"
    sweep = parse_sweep([recipe(text), "--grid.learning_rate", "0.5", "--grid.model.base_channels", "2"])
    assert list(sweep.cells) == ["0.5-2-resnet18", "0.5-2-null"]
    trials = [ask(sweep, cell) for cell in sweep.cells.values()]
    assert trials[0]["backbone_weights"] == ["none"]
    assert "backbone_weights" not in trials[1]
    models = [parse(sweep.arguments(settings, "out"))[1]["backbone"] for settings in trials]
    assert models == ["resnet18", None]


def test_a_space_is_asked_of_the_sampler(recipe):
    sweep = parse_sweep([recipe(SPACE)])
    assert list(sweep.cells) == ["trial-000", "trial-001", "trial-002"]
    trials = [ask(sweep, seed=seed) for seed in range(30)]
    rates, widths, decays = ([trial[name][0] for trial in trials] for name in sweep.space)
    assert all(1e-4 <= float(rate) <= 1e-2 for rate in rates) and len(set(rates)) == 30
    assert sum(float(rate) < 1e-3 for rate in rates) > 8  # logarithmic: half of them, else a tenth
    assert set(widths) == {"2", "4", "6", "8"} and set(decays) == {"0.0", "0.1"}
    assert len(parse_sweep([recipe(SPACE), "--trials", "5"]).cells) == 5


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("variant: unet", (), "needs a grid [(]or folds[)] or a space"),
        (GRID + "space: {seed: [1, 2]}", (), "and not both"),
        ("grid: {seed: 1}", (), "grid.seed must list its values, got 1"),
        ("grid: {seed: []}", (), "grid.seed must list its values"),
        ("grid: {seed: [1, 1]}", (), "grid.seed: the values"),
        ("grid: {model.depth: [2, 0]}", (), "0: depth must be at least 1, got 0"),
        ("space: {seed: {low: 1}}", (), "trial-000: space.seed must be a list, or low and high"),
        ("space: {seed: 3}", (), "space.seed must be"),
        ("space: {seed: {low: 1, high: 3, lg: true}}", (), "space.seed must be"),
        ("space: {seed: [1, 2]}", ("--trials", "many"), "trials must be a whole number"),
        ("space: {seed: [1, 2]}", ("--trials", "0"), "trials must be a whole number"),
        ("space: {seed: [1, 2]}", ("--folds", "3"), "and not both"),
        ("variant: unet", ("--folds", "1"), "folds must be a whole number of at least 2, got '1'"),
    ],
)
def test_what_no_sweep_can_be_made_of(recipe, text, argv, message):
    with pytest.raises(ValueError, match=message):
        parse_sweep([recipe(text), *argv])


def test_no_recipe():
    with pytest.raises(ValueError, match="a recipe with grid: or space:, or with --folds, comes first"):
        parse_sweep(["--seed", "1"])


@pytest.mark.parametrize("text", ["grid: {learning_rat: [1, 2]}", "grid: {model.wdth: [1]}", GRID + "sed: 1"])
def test_unknown_fields_name_the_nearest(recipe, text, capsys):
    with pytest.raises(SystemExit):
        parse_sweep([recipe(text)])
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["family", "unet_resnet50", "unet3plus_efficientnet"])
def test_sweeps_that_come_with_the_project(name):
    sweep = parse_sweep([name])
    assert len(sweep.cells) == {"family": 24, "unet_resnet50": 4, "unet3plus_efficientnet": 20}[name]


def test_cells_whose_names_fold_into_one_all_run(recipe):
    text = 'grid:\n  choice: {"a b": {seed: 1}, a_b: {seed: 2}, a/b: {seed: 3}, a_b-2: {seed: 4}, "": {seed: 5}}'
    sweep = parse_sweep([recipe(text)])
    assert list(sweep.cells) == ["a_b", "a_b-3", "a_b-4", "a_b-2", "_"]
    assert [ask(sweep, cell)["seed"] for cell in sweep.cells.values()] == [["1"], ["2"], ["3"], ["4"], ["5"]]
    assert len({sweep.folder(name) for name in sweep.cells}) == 5


def test_parts_of_a_name_that_meet_differently_are_told_apart(recipe):
    text = "grid:\n  one: {a: {seed: 1}, a-b: {seed: 2}}\n  other: {c: {}, b-c: {}}"
    assert list(parse_sweep([recipe(text)]).cells) == ["a-c", "a-b-c", "a-b-c-2", "a-b-b-c"]


def test_a_long_name_is_cut(recipe):
    sweep = parse_sweep([recipe("grid: {augmentation: ['[{HorizontalFlip: {p: 0." + "5" * 300 + "}}]', '[]']}")])
    assert max(map(len, sweep.cells)) <= 124


def test_folds_are_trials_of_any_recipe(recipe):
    sweep = parse_sweep([recipe("split: official"), "--folds", "3", "--seed", "2"])
    assert sweep.folds == 3 and list(sweep.cells) == ["fold-1-of-3", "fold-2-of-3", "fold-3-of-3"]
    arguments, *_ = parse(sweep.arguments(ask(sweep, sweep.cells["fold-2-of-3"]), sweep.folder("fold-2-of-3")))
    assert (arguments.split, arguments.seed) == ("fold-2-of-3", 2)
    assert sweep.folds_of_choices() == {"mine": ["fold-1-of-3", "fold-2-of-3", "fold-3-of-3"]}


def test_each_choice_of_a_grid_has_its_folds(recipe):
    sweep = parse_sweep([recipe("grid: {learning_rate: [0.01, 0.001]}"), "--folds", "2"])
    assert sweep.folds_of_choices() == {
        "0.01": ["0.01-fold-1-of-2", "0.01-fold-2-of-2"],
        "0.001": ["0.001-fold-1-of-2", "0.001-fold-2-of-2"],
    }
