"""Every recipe starts on real data, and its loss falls. Size, number of samples and epochs are overridden for time."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from hub_unets.training.records.results import read_history
from hub_unets.training.settings.recipes import RECIPES, read_recipe
from tests.training import runs

SHARED = runs.ROOT.parent / "shared"
DATA = {"unet_neopolyp": "bkai-neopolyp"}  # the others: kvasir-seg
WEIGHTS = {"mobilenetv2_100": str(SHARED / "weights" / "mobilenetv2_100.safetensors")}
SMALLER = {"image_size": 64, "max_samples": 64, "num_train_epochs": 4, "logging_steps": 1}
SIDES = {"unet_classic": 100}  # of the 16 n + 4 that unpadded convolutions return, the first above its margin of 92
EPOCHS = {"unet_classic": 3}
SAMPLES = {"unet3plus_efficientnet": 32, "unet_classic": 32}  # the slow ones

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "kvasir-seg").exists(), reason="the real data are not beside the checkout"),
]


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_recipe_starts_and_its_loss_falls(recipe, tmp_path):
    fields = read_recipe(RECIPES / f"{recipe}.yaml")
    data = {} if "data" in fields else {"data": str(SHARED / DATA.get(recipe, "kvasir-seg"))}
    if backbone := fields.get("model.backbone"):
        data["backbone_weights"] = WEIGHTS.get(backbone, "none")
    data |= {"extra_data": str(SHARED / "other-hospitals/clinicdb")} if "extra_split" in fields else {}
    changes = SMALLER | data | {"output_dir": str(tmp_path / "run"), "disable_tqdm": "true"}
    changes["image_size"] = SIDES.get(recipe, changes["image_size"])
    changes["max_samples"] = SAMPLES.get(recipe, changes["max_samples"])
    changes["num_train_epochs"] = EPOCHS.get(recipe, changes["num_train_epochs"])
    overrides = [text for name, value in changes.items() for text in (f"--{name}", str(value))]
    ended = subprocess.run(
        [sys.executable, "training/run.py", recipe, *overrides],
        cwd=runs.ROOT,
        env={**os.environ, **runs.SERVER_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    history = read_history(Path(changes["output_dir"]), {})
    losses = [entry["loss"] for entry in history if "loss" in entry]
    quarter = len(losses) // 4
    first, last = statistics.median(losses[:quarter]), statistics.median(losses[-quarter:])
    print(f"{recipe}: {len(losses)} steps, median loss {first:.4f} in the first quarter, {last:.4f} in the last")
    assert quarter >= 2 and last < first
