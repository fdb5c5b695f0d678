"""Minutes to accuracy: watching a training, the record that goes on, both sides for real at a small size."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from hub_unets.benchmarks import minutes, page
from hub_unets.benchmarks.networks import our_network
from hub_unets.benchmarks.plain_training import create_network


def test_the_newest_readable_state_tells_how_far_a_training_is(tmp_path):
    assert minutes.dice_of_run(tmp_path) == []
    for step, text in ((9, '{"log_history": [{"loss": 1}, {"eval_dice": 0.5}]}'), (10, '{"log_his')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(text)
    assert minutes.dice_of_run(tmp_path) == [0.5]


def test_lines_that_are_half_written_are_left_out(tmp_path):
    path = tmp_path / "printed"
    path.write_text('a warning\n{"epoch": 1, "dice": 0.25}\n{"epoch": 2, "di')
    assert minutes.dice_of_lines(path) == [0.25]


@pytest.mark.parametrize(
    ("code", "scores", "passed"),
    [
        ("pass", [0.89], [0.88]),
        ("import time; time.sleep(60)", [0.91, 0.7], [0.88, 0.9]),  # ended at the last target
        ("pass", [], []),
    ],
)
def test_the_minutes_to_each_dice(code, scores, passed):
    process = subprocess.Popen([sys.executable, "-c", code])
    found = list(minutes.reached(process, lambda: scores, (0.88, 0.9), pause=0.05))
    assert [target for target, _ in found] == passed and all(passed < 0.5 for _, passed in found)
    assert process.poll() is not None


def test_a_training_that_fails_is_an_error():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(RuntimeError, match="ended with an error"):
        list(minutes.reached(process, list, (0.88,), pause=0.05))


def test_a_whole_run_goes_on_behind_the_last_target(tmp_path):
    code = f"import time; time.sleep(1); open({str(tmp_path / 'done')!r}, 'w')"
    list(
        minutes.reached(subprocess.Popen([sys.executable, "-c", code]), lambda: [1.0], (0.5,), whole=True, pause=0.05)
    )
    assert (tmp_path / "done").exists()


def test_sides_take_turns_and_what_is_done_is_kept(monkeypatch):
    asked, kept = [], []

    def run_side(side, options, targets, whole):
        asked.append((side, options, whole))
        return {"minutes": {}, "best_dice": 0.5, "epochs": 1, "total_minutes": 1.0}

    monkeypatch.setattr(minutes, "run_side", run_side)
    sides = {"plain": ("plain", []), "ours --x 1": ("ours", ["--x", "1"])}
    record = [{"side": "plain", "seed": 0}]
    minutes.measure(["recipe"], sides, [0, 1], (0.9,), True, record, lambda rows: kept.append(len(rows)))
    assert asked == [
        ("ours", ["recipe", "--x", "1", "--seed", "0"], True),
        ("plain", ["recipe", "--seed", "1"], False),
        ("ours", ["recipe", "--x", "1", "--seed", "1"], True),
    ]
    assert kept == [2, 3, 4]


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet18"])
def test_the_plain_network_starts_from_the_same_weights(backbone, tmp_path):
    ours = our_network("unet", backbone)
    state = {
        name: torch.randn_like(t) if t.is_floating_point() else t
        for name, t in ours.encoder.backbone.state_dict().items()
    }
    save_file(state, tmp_path / f"{backbone}.safetensors")
    theirs = create_network(backbone, str(tmp_path)).encoder.state_dict()
    assert all(torch.equal(theirs[next(key for key in theirs if key.endswith(name))], state[name]) for name in state)


@pytest.mark.long
def test_both_sides_reach_a_low_target(tmp_path, capsys):
    save_file(
        our_network("unet", "mobilenetv2_100").encoder.backbone.state_dict(), tmp_path / "mobilenetv2_100.safetensors"
    )
    recipe = tmp_path / "small.yaml"
    recipe.write_text("recipe: unet_mobilenetv2\nsplit: own\nimage_size: 64\nnum_train_epochs: 2\nema_decay: 0.5\n")
    options = ["--recipe", str(recipe), "--data", "phantoms?count=40&size=64", "--backbone_weights", str(tmp_path)]
    options += ["--seeds", "3", "--targets", "-1", "0.9999", "--output", str(tmp_path)]
    minutes.main([*options, "--", "--first_train_size", "32"])
    record = json.loads((tmp_path / minutes.RESULTS).read_text())
    assert [run["side"] for run in record["runs"]] == ["ours", "plain", "ours --first_train_size 32"]
    assert all(run["minutes"].keys() == {"-1.0"} and run["epochs"] == 2 for run in record["runs"])
    assert "| `ours --first_train_size 32` | 3 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        minutes.main([*options, "--num_train_epochs", "1"])


def test_the_page_means_over_seeds_and_shows_a_target_that_was_missed():
    machine = {"cpu": "AMD EPYC", "cores": 2, "threads": 2, "torch": "2.9"}
    terms = {"recipe": "unet_mobilenetv2", "epochs": None, "data": "kvasir-seg", "hardware": machine}
    runs = [
        {"side": "ours", "seed": 0, "minutes": {"0.88": 4, "0.9": 8}, "best_dice": 0.91, "epochs": 12},
        {"side": "ours", "seed": 1, "minutes": {"0.88": 6}, "best_dice": 0.89, "epochs": 28},
    ]
    text = page.minutes({"terms": terms, "runs": runs})
    assert "| `ours` | 0, 1 | 5.0 (4.0, 6.0) | 8.0, – | 0.9100 of 12, 0.8900 of 28 |" in text
