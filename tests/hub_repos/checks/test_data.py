"""Which images differ from those that were scored, and how."""

import shutil

import pytest

from hub_unets.hub_repos.checks.data import check_data_digests, compare_digests, require_present, stored_digests
from hub_unets.training.data.digests import PairDigests
from hub_unets.training.measure.score import Scores

PAIR = PairDigests(*(letter * 64 for letter in "abcd"))
NAMES = [f"n{number:02}" for number in range(12)]


def compared(pair, names=("x",)):
    """compare_digests of images that all became `pair`, and one that did not change."""
    stored = dict.fromkeys([*names, "same"], PAIR)
    return compare_digests(stored, Scores([*names, "same"], digests=[*[pair] * len(names), PAIR]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "2 images and masks; every file the same"),
        ({"image": "e"}, "2 images and masks; image re-encoded only: 1 (x)"),
        ({"image_pixels": "e"}, "2 images and masks; image decoded otherwise on this machine: 1 (x)"),
        ({"image": "e", "mask": "f"}, "2 images and masks; image re-encoded only: 1 (x); mask re-encoded only: 1 (x)"),
    ],
)
def test_the_same_pixels_or_the_same_file_pass(changes, said):
    assert compared(PAIR._replace(**changes)) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "e", "image_pixels": "e"}, r"^image changed: 1 \(x\)$"),
        ({"mask": "e", "mask_pixels": "e", "image": "e"}, r"^image re-encoded only: 1 \(x\); mask changed: 1 \(x\)$"),
    ],
)
def test_other_pixels_fail_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        compared(PAIR._replace(**changes))


def test_ten_are_named_and_all_are_counted():
    with pytest.raises(ValueError, match=r"image changed: 12 \(n00, .*n09, \.\.\.\)$"):
        compared(PAIR._replace(image="e", image_pixels="e"), NAMES)
    with pytest.raises(ValueError, match=r"^missing: 12 \(n00, .*n09, \.\.\.\)$"):
        require_present({"test": dict.fromkeys(NAMES, PAIR)}, ["same"])
    require_present({"test": {"same": PAIR}}, ["same", "more"])


def test_the_digests_are_of_the_rows(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "copy")
    images = sum(map(len, stored_digests(repository).values()))
    assert check_data_digests(tmp_path / "copy") == f"{images} images and masks"
    path = tmp_path / "copy" / "data_digests.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"data_digests.csv: .* is not as validation in it and in per_image.csv"):
        check_data_digests(tmp_path / "copy")
    path.unlink()
    assert check_data_digests(tmp_path / "copy").startswith("none: ")
