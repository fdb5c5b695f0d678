"""`hub-unets quantise`: the file, and how its masks agree with the run's."""

import json
import re
import shutil

import numpy as np
import pytest

from hub_unets.hub_repos.quantise import compared, main, quantise
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.training.data.phantoms import phantom_dataset
from hub_unets.training.data.reading import read_image
from hub_unets.training.measure.task import Task
from tests.hub_repos.conftest import DATA


def test_it_writes_the_file_and_says_what_it_cost(checkpoint, tmp_path, capsys):
    run = shutil.copytree(checkpoint, tmp_path / "run")
    main([str(run), DATA, "--images", "2"])
    output = capsys.readouterr().out
    dices = [float(number) for number in re.findall(r"[01]\.\d{4}", output)]
    stated = json.loads((run / "results.json").read_text())["metrics"]["validation"]["per_image"]["dice"]["value"]
    assert (run / INT8).stat().st_size > 1000 and "Next: hub-unets build" in output
    assert abs(dices[0] - stated) < 1e-4 and dices[2] > 0.9 and dices[3] <= dices[2]


def test_other_data_is_refused_before_anything_is_written(checkpoint, tmp_path):
    run = shutil.copytree(checkpoint, tmp_path / "run")
    with pytest.raises(ValueError, match="is not what .*run was trained on: its split own has other images"):
        quantise(run, "phantoms?count=9&size=64&seed=1")
    assert not (run / INT8).exists()


@pytest.mark.parametrize("images", [0, -3])
def test_no_images_are_refused(images, checkpoint):
    with pytest.raises(ValueError, match=f"--images must be 1 or more, got {images}"):
        quantise(checkpoint, DATA, images)


def test_agreement_by_hand():
    """A network that is right, and one that marks all of each image."""
    rows, task = phantom_dataset(2, size=64), Task()
    truths = {read_image(row["image"], row["name"]).tobytes(): task.truth(row) for row in rows}

    def right(images):
        return [truths[images[0].tobytes()]], None

    def whole(images):
        return [np.ones_like(truths[images[0].tobytes()])], None

    shares = [truth.mean() for truth in truths.values()]
    dices = [2 * share / (1 + share) for share in shares]
    found = compared(right, whole, rows, task)
    assert found.images == 2 and found.plain == 1.0
    assert np.isclose(found.int8, np.mean(dices)) and np.isclose(found.between, np.mean(dices))
    assert np.isclose(found.least, min(dices)) and found.name == rows[int(np.argmin(dices))]["name"]
