"""The check counts what is there, names each bad pair, and goes on."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hub_unets.training.data.check_data import check, format_check, print_check
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.reading import read_labels
from hub_unets.training.data.sources import load_source


@pytest.fixture
def folder(tmp_path):
    """Twenty pairs of 32 x 24 pixels: a third is polyp, but s00 is empty, s01 has two and s02 one with a speck."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(20):
        mask = np.zeros((24, 32), np.uint8)
        if number:
            mask[4:20, 4:20] = 255
        if number == 1:
            mask[:, 10:12] = 0
        Image.new("RGB", (32, 24), (number, 9, 9)).save(tmp_path / f"images/s{number:02d}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/s{number:02d}.png")
    return tmp_path


def checked(folder, split="80/10/10"):
    rows, partition = make_partition(load_source(str(folder)), split)
    return check(rows, partition, 2), partition


def test_sound_set(folder):
    report, partition = checked(folder)
    assert report["pairs"] == 20 and report["bad"] == []
    assert report["sizes"]["width"] == {"min": 32, "median": 32, "max": 32}
    assert report["sizes"]["height"] == {"min": 24, "median": 24, "max": 24}
    assert report["empty_masks"] == ["s00"] and report["several_polyps"] == ["s01"]
    assert report["polyp_area"]["max"] == report["polyp_area"]["50%"] == pytest.approx(1 / 3)
    assert report["mask_values"]["distinct"] == [0, 255]
    assert report["mask_values"]["white"] == pytest.approx((19 * 256 - 32) / (20 * 768))
    assert report["split"]["sizes"] == {"train": 16, "validation": 2, "test": 2}
    assert report["split"]["sha256"] == partition.sha256
    assert report["leaks"] == {"stems": [], "identical": [], "twins": []}


def test_specks_are_no_polyps(folder):
    mask = np.zeros((100, 100), np.uint8)
    mask[20:60, 20:60] = mask[90, 90:94] = 255  # 4 pixels are less than .0005 of 100 x 100
    Image.new("RGB", (100, 100)).save(folder / "images/s02.png")
    Image.fromarray(mask).save(folder / "masks/s02.png")
    assert checked(folder)[0]["several_polyps"] == ["s01"]


def test_every_bad_pair_is_named(folder):
    (folder / "images/s03.png").write_text("text")
    Image.new("L", (16, 12), 255).save(folder / "masks/s04.png")
    Image.new("L", (32, 24), 7).save(folder / "masks/s05.png")
    report, _ = checked(folder)
    assert [pair["name"] for pair in report["bad"]] == ["s03", "s04", "s05"]
    reasons = [pair["reason"] for pair in report["bad"]]
    assert "not a readable image" in reasons[0] and "16 x 12" in reasons[1] and "out of range: found 7" in reasons[2]
    assert 7 not in report["mask_values"]["distinct"]
    lines = format_check(report).splitlines()
    assert "20, of them bad: 3" in lines[0]
    assert [line[:9] for line in lines[-3:]] == ["BAD  s03 ", "BAD  s04:", "BAD  s05:"]


def test_with_a_boundary_masks_of_three_labels_are_bad(folder):
    for number, value in ((3, 1), (4, 2)):
        Image.new("L", (32, 24), value).save(folder / f"masks/s{number:02d}.png")
    rows, partition = make_partition(load_source(str(folder)), "80/10/10")
    assert check(rows, partition, 3)["bad"] == []
    (bad,) = print_check(rows, partition, 3, boundary_width=2)["bad"]
    assert bad["name"] == "s04" and "holds a label 2 already" in bad["reason"]


def test_nothing_but_bad_pairs(folder):
    for file in (folder / "masks").iterdir():
        file.write_text("text")
    report, _ = checked(folder)
    assert len(report["bad"]) == 20 and report["polyp_area"] == {}
    assert "no sound pair" in format_check(report)


def test_print(folder, capsys):
    rows, partition = make_partition(load_source(str(folder)), "80/10/10")
    assert print_check(rows, partition) == check(rows, partition)
    printed = capsys.readouterr().out
    for expected in ("32 / 32 / 32", "0, 255", "max 33.3%", "train 16, validation 2, test 2", partition.sha256, "s01"):
        assert expected in printed


def test_real_set():
    default = Path(__file__).parents[4] / "shared" / "kvasir-seg"
    folder = Path(os.environ.get("KVASIR_SEG", default))
    if not (folder / "images").is_dir():
        pytest.skip(f"{folder} not found; set KVASIR_SEG")
    rows, partition = make_partition(load_source(str(folder)), "official")
    for row in rows.select(range(20)):
        assert set(np.unique(read_labels(row["annotation"], row["name"]))) == {0, 1}
    report = check(*make_partition(datasets.DatasetDict(all=rows.select(partition.test)), "80/10/10"))
    assert report["pairs"] == 120 and not report["bad"] and not report["empty_masks"]
    assert report["mask_values"]["between"] > 0 and set(report["mask_values"]["distinct"]) <= {
        *range(9),
        *range(246, 256),
    }
