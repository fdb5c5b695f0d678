"""What is kept of finished runs: records, those of their evaluations, and the median's checkpoint."""

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file

from hub_unets.hub_repos import keep
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.training.measure.models import load_model
from tests.hub_repos.checks.figure_records import change_results, write
from tests.training.runs import run


def run_of_dice(folder, dice):
    write(folder, report=True)
    change_results(folder, dice, "metrics", "validation", "per_image", "dice", "value")
    return folder


@pytest.mark.parametrize(("dices", "chosen"), [((0.9, 0.8, 0.85), 2), ((0.9, 0.8), 1), ((0.9,), 0)])
def test_the_median_never_the_best_of_several(tmp_path, dices, chosen):
    runs = [run_of_dice(tmp_path / str(number), dice) for number, dice in enumerate(dices)]
    assert keep.median(runs) == runs[chosen]


def test_a_runs_evaluations_are_kept_with_it(tmp_path):
    write(tmp_path / "run")
    write(tmp_path / "run/elsewhere")
    write(tmp_path / "run/repository")
    (tmp_path / "run/checkpoint-3").mkdir()
    keep.main([str(tmp_path / "run"), str(tmp_path / "kept")])
    kept_files = {path.relative_to(tmp_path / "kept/run").as_posix() for path in tmp_path.glob("kept/run/**/*.*")}
    assert kept_files == {"results.json", "per_image.csv", "elsewhere/results.json", "elsewhere/per_image.csv"}


def test_nothing_of_an_earlier_run_stays(checkpoint, tmp_path):
    kept, run = tmp_path / "kept", shutil.copytree(checkpoint, tmp_path / "run")
    for name in ("history.csv", "data_digests.csv"):
        (run / name).unlink(missing_ok=True)
    for folder in (kept, kept / "seeds/run"):
        folder.mkdir(parents=True)
        for name in ("history.csv", "data_digests.csv", "notes.txt"):
            (folder / name).write_text("earlier")
    for name in (INT8, "worst.png"):
        (kept / name).write_text("earlier")
    keep.main([str(run), str(kept / "seeds"), "--publish", str(kept)])
    left = {path.relative_to(kept).as_posix() for path in kept.rglob("*.*") if path.read_bytes() == b"earlier"}
    assert left == {"notes.txt", "seeds/run/notes.txt"}
    assert "worst.png" not in (kept / "README.md").read_text(encoding="utf-8")


def test_an_unfinished_run_stops_everything(tmp_path):
    write(tmp_path / "run")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="other is not a finished run: results.json is missing"):
        keep.main([str(tmp_path / "run"), str(tmp_path / "other"), str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()


@pytest.mark.long
def test_the_kept_model_predicts_builds_and_says_that_it_has_no_code(tmp_path, monkeypatch):
    finished = run(tmp_path / "run", half_precision="true", num_train_epochs=1, draws=True)
    assert finished.code == 0, finished.stderr
    keep.main([str(tmp_path / "run"), str(tmp_path / "kept/seeds"), "--publish", str(tmp_path / "kept")])
    card = (tmp_path / "kept/README.md").read_text(encoding="utf-8")
    assert "no code: `hub-unets build FOLDER MODEL`" in card and "![worst](worst.png)" in card
    Image.open(tmp_path / "kept/worst.png").verify()
    model, _ = load_model(tmp_path / "kept")
    stored = load_file(tmp_path / "run/model.safetensors")
    assert all((model.state_dict()[name] == value).all() for name, value in stored.items())
    build(tmp_path / "kept", tmp_path / "repository")
    assert "no code" not in (tmp_path / "repository/README.md").read_text(encoding="utf-8")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "repository")]
    assert results[0] == results[1]
    monkeypatch.setattr(keep, "LARGEST", 100)
    shutil.rmtree(tmp_path / "kept")
    with pytest.raises(ValueError, match="keeps at most 0: train with half_precision: true"):
        keep.main([str(tmp_path / "run"), str(tmp_path / "kept/seeds"), "--publish", str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()
