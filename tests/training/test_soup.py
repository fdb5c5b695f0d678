"""Soups of real runs: the mean of the weights, kept where validation Dice does not fall, and what is refused."""

import json
import re
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.repository.builder import build
from hub_unets.training import soup
from hub_unets.training.errors import UserError
from hub_unets.training.records.results import read_results
from tests.training import runs

DATA = runs.TINY["data"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three runs of two epochs that go on from the same one, in a folder."""
    folder = tmp_path_factory.mktemp("soup")
    assert runs.run(folder / "start").code == 0
    for seed in range(3):
        result = runs.run(folder / f"seed_{seed}", seed=seed, start_from=folder / "start")
        assert result.code == 0, result.stderr
    return folder


@pytest.fixture
def members(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return [tmp_path / "runs" / f"seed_{seed}" for seed in range(3)]


def make_soup(*members, output, data=DATA, **options):
    argv = [*map(str, members), "--data", data, "--output_dir", str(output)]
    soup.main([*argv, *(text for name, value in options.items() for text in (f"--{name}", str(value)))])
    return read_results(output / "results.json")


def damage(member):
    """Turn the head's weights round, so far that the mean with two good runs marks the background; figures stay."""
    path = member / "model.safetensors"
    weights = {name: -9 * value if name.startswith("head") else value for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def test_equal_runs_make_a_run_that_is_built(members, tmp_path):
    """Three times the same weights: nothing falls, all are kept, and the mean is what each was."""
    for member in members[1:]:
        shutil.copyfile(members[0] / "model.safetensors", member / "model.safetensors")
    results = make_soup(*members, output=tmp_path / "mean")
    assert sorted(results["run"]["settings"]["soup"].split(", ")) == ["seed_0", "seed_1", "seed_2"]
    assert {"validation", "test"} <= results["metrics"].keys()
    weights, mean = (load_file(folder / "model.safetensors") for folder in (members[0], tmp_path / "mean"))
    assert weights.keys() == mean.keys()
    assert all(torch.allclose(weights[name], mean[name]) for name in weights)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "mean").iterdir()}
    assert modes == {stat.S_IMODE((members[0] / "config.json").stat().st_mode)}
    assert (tmp_path / "mean").stat().st_mode == members[0].stat().st_mode
    build(tmp_path / "mean", tmp_path / "repository")
    assert [str(check) for check in verify_folder(tmp_path / "repository", run=False) if not check.passed] == []
    assert "soup: seed_" in (tmp_path / "repository/README.md").read_text(encoding="utf-8")


def test_the_mean_is_that_of_the_runs_that_are_kept(members, tmp_path, capsys):
    shutil.copyfile(members[0] / "model.safetensors", members[1] / "model.safetensors")
    damage(members[2])
    results = make_soup(*members, output=tmp_path / "mean", score_test="false")
    assert sorted(results["run"]["settings"]["soup"].split(", ")) == ["seed_0", "seed_1"]
    assert re.search(r"with seed_2: 0\.\d{4}, left out", capsys.readouterr().out)
    assert "test" not in results["metrics"]
    weights, mean = (load_file(folder / "model.safetensors") for folder in (members[0], tmp_path / "mean"))
    assert all(torch.allclose(weights[name], mean[name]) for name in weights)


def test_the_mean_by_hand():
    states = [
        {"a": torch.tensor([1.0, 3.0]), "n": torch.tensor(5)},
        {"a": torch.tensor([2.0, -1.0]), "n": torch.tensor(7)},
    ]
    mean = soup.mean_of(states)
    assert mean["a"].tolist() == [1.5, 1.0] and mean["n"].item() == 5
    half = soup.mean_of([{"a": torch.tensor([1.0, 3.0]).half()}] * 3)["a"]
    assert half.dtype == torch.float16 and half.tolist() == [1.0, 3.0]


def test_a_run_that_lowers_dice_is_left_out(members, tmp_path):
    lower, best = sorted(members[:2], key=lambda member: soup.read_member(member).dice)
    damage(lower)
    message = f"validation Dice falls whichever run is added to {best.name}: nothing was written"
    with pytest.raises(UserError, match=message):
        make_soup(lower, best, output=tmp_path / "mean")
    assert not (tmp_path / "mean").exists() and not list(tmp_path.glob(".soup-*"))


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_runs_that_differ_are_refused_by_what_differs(members, tmp_path):
    change(members[1] / "preprocessor_config.json", mask_threshold=0.4)  # of its own calibration
    change(members[1] / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=r"can't be averaged: preprocessor_config.json, image_mean is .* and .*"):
        make_soup(*members[:2], output=tmp_path / "mean")


def test_the_second_data_set_stays_on_record_and_must_be_the_same(members, tmp_path):
    extra = {"source": "other", "split": "all", "images": 9, "sha256": "0" * 64}
    data = json.loads((members[0] / "results.json").read_text())["data"] | {"extra": [extra]}
    change(members[0] / "results.json", data=data)
    with pytest.raises(UserError, match="can't be averaged: results.json, data.extra is"):
        make_soup(*members[:2], output=tmp_path / "mean")
    change(members[1] / "results.json", data=data)
    shutil.copyfile(members[0] / "model.safetensors", members[1] / "model.safetensors")  # so that nothing falls
    assert make_soup(*members[:2], output=tmp_path / "mean")["data"]["extra"] == [extra]


@pytest.mark.parametrize(
    ("count", "data", "message"),
    [
        (1, DATA, "two runs or more"),
        (2, "phantoms?count=30&size=64&seed=0", "split otherwise than when seed_. was trained"),
    ],
)
def test_what_is_no_soup(count, data, message, members, tmp_path):
    with pytest.raises(UserError, match=message):
        make_soup(*members[:count], output=tmp_path / "mean", data=data)


def test_an_unfinished_run_and_a_folder_that_exists(members, tmp_path):
    (members[1] / "results.json").unlink()
    with pytest.raises(UserError, match="seed_1 is not a finished run: results.json is missing"):
        make_soup(*members[:2], output=tmp_path / "mean")
    with pytest.raises(UserError, match="exists: choose another output_dir"):
        make_soup(*members[:2], output=members[0])
