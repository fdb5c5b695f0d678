"""data_digests.csv: written of Scores, read back, refused where it is not what is written."""

import hashlib

import pytest

from hub_unets.training.data.digests import PairDigests
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.data_digests import digest_of_all, read_data_digests, write_data_digests

PAIR = PairDigests(*(letter * 64 for letter in "abcd"))
SCORES = {"validation": Scores(["x, y"], digests=[PAIR]), "test": Scores(["b", "a"], digests=[PAIR, PAIR])}


def test_is_read_back(tmp_path):
    write_data_digests(tmp_path, SCORES)
    assert read_data_digests(tmp_path / "data_digests.csv") == {
        "validation": {"x, y": PAIR},
        "test": {"a": PAIR, "b": PAIR},
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_sha256", "image", r"line 1: the columns must be name, part, image_sha256"),
        ("a" * 64, "a" * 63, "line 2: a row holds a name, a part and four sha256 in hex"),
        ("a" * 64, "A" * 64, "line 2: a row holds"),
        ("\na,", "\nb,", "line 4: b is in two rows"),
        ("\nb,test", '\n"b,test', "line 4: unexpected end of data"),
    ],
)
def test_what_is_not_written_is_refused_by_its_line(old, new, message, tmp_path):
    write_data_digests(tmp_path, SCORES)
    path = tmp_path / "data_digests.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_data_digests(path)


def test_the_digest_of_all_is_of_sorted_lines():
    pairs = {"b": PAIR, "a": PAIR}
    lines = f"a\t{'b' * 64}\t{'d' * 64}\nb\t{'b' * 64}\t{'d' * 64}\n"
    assert digest_of_all(pairs, ("image_pixels", "mask_pixels")) == hashlib.sha256(lines.encode()).hexdigest()
    assert digest_of_all(pairs, ("image_pixels",)) != digest_of_all({"b": PAIR}, ("image_pixels",))
