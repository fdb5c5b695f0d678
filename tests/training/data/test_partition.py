"""Splits: published lists to the digit, our own exact, seeded, and with twins on one side."""

import dataclasses
import hashlib
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hub_unets.training.data import partition as module
from hub_unets.training.data.partition import leaks, make_partition, near_duplicates, published_names
from hub_unets.training.data.sources import load_source

TWIN_A, TWIN_B = near_duplicates()[0]


@pytest.fixture(scope="module")
def real_source() -> datasets.DatasetDict:
    default = Path(__file__).parents[4] / "shared" / "kvasir-seg"
    folder = Path(os.environ.get("KVASIR_SEG", default))
    if not (folder / "images").is_dir():
        pytest.skip(f"{folder} not found; set KVASIR_SEG")
    return load_source(str(folder))


def part(names, contents=None) -> datasets.Dataset:
    images = [{"bytes": content.encode(), "path": None} for content in contents or names]
    encoded = datasets.Image(decode=False)
    features = datasets.Features(name=datasets.Value("string"), image=encoded, annotation=encoded)
    return datasets.Dataset.from_dict({"name": names, "image": images, "annotation": images}, features=features)


def source(**parts) -> datasets.DatasetDict:
    return datasets.DatasetDict({key: part(names) for key, names in parts.items()})


def numbered(count, prefix="s") -> list[str]:
    return [f"{prefix}{i:03d}" for i in range(count)]


def kvasir_names() -> list[str]:
    return published_names("official_train") + published_names("official_val")


def assert_whole(partition, count):
    indices = partition.train + partition.validation + partition.test
    assert sorted(indices) == list(range(count))
    for key in module.PARTS:
        assert partition.names_of(key) == sorted(partition.names_of(key))


class TestLists:
    def test_lengths(self):
        lists = "official_train", "official_val", "pranet_train", "pranet_test"
        assert [len(set(published_names(name))) for name in lists] == [880, 120, 900, 100]
        assert len(near_duplicates()) == 21

    def test_a_missing_final_newline_loses_no_line(self, tmp_path, monkeypatch):
        (tmp_path / "list.txt").write_bytes(b"a\r\nb\nc")
        monkeypatch.setattr(module, "SPLITS", tmp_path)
        assert published_names("list") == ["a", "b", "c"]

    def test_pranet_tests_on_what_official_trains_on(self):
        assert len(set(published_names("pranet_test")) & set(published_names("official_train"))) == 91


class TestPublished:
    @pytest.mark.parametrize(
        ("split", "sizes", "twins"),
        [("official", (792, 88, 120), 12), ("official-halved", (880, 60, 60), None), ("pranet", (810, 90, 100), None)],
    )
    def test_sizes_and_twins(self, split, sizes, twins):
        _, partition = make_partition(source(all=kvasir_names()), split)
        assert tuple(partition.sizes.values()) == sizes
        assert_whole(partition, 1000)
        assert twins is None or len(partition.twins) == twins
        held_out = set(partition.names_of("train")) | set(partition.names_of("validation"))
        expected = {a for x, y in near_duplicates() for a, b in ((x, y), (y, x)) if b in held_out}
        assert set(partition.twins) == expected & set(partition.names_of("test"))

    def test_official_test_is_the_list_and_validation_moves_with_the_seed(self):
        partitions = [make_partition(source(all=kvasir_names()), "official", seed)[1] for seed in (42, 42, 7)]
        assert partitions[0] == partitions[1]
        assert partitions[0].names_of("test") == sorted(published_names("official_val"))
        assert partitions[0].validation != partitions[2].validation and partitions[0].sha256 != partitions[2].sha256

    def test_twins_in_the_training_list_are_not_cut_apart(self):
        _, partition = make_partition(source(all=kvasir_names()), "official")
        side = {name: key for key in ("train", "validation") for name in partition.names_of(key)}
        assert all(side[a] == side[b] for a, b in near_duplicates() if a in side and b in side)

    def test_any_parts_and_order_of_the_source(self):
        names = kvasir_names()
        _, first = make_partition(source(all=names), "official")
        _, second = make_partition(source(train=names[:300], test=names[:299:-1]), "official")
        assert first.sha256 == second.sha256 and first.twins == second.twins
        assert [first.names[i] for i in first.train] == [second.names[i] for i in second.train]

    def test_without_stems(self):
        rows = source(all=[f"row-{i:06d}" for i in range(5)])
        with pytest.raises(ValueError, match='"official" is a list of file stems and the source has none .*80/10/10'):
            make_partition(rows, "official")

    def test_with_other_stems(self):
        names = [*kvasir_names()[:-2], "extra"]
        with pytest.raises(ValueError, match=r"2 of its 1000 stems are missing .*1 images are in no list \(extra\)"):
            make_partition(source(all=names), "pranet")


class TestDrawn:
    @pytest.mark.parametrize(("count", "sizes"), [(240, (192, 24, 24)), (23, (19, 2, 2)), (3, (1, 1, 1))])
    def test_exact_sizes_of_any_count(self, count, sizes):
        _, partition = make_partition(source(all=numbered(count)), "80/10/10")
        assert tuple(partition.sizes.values()) == sizes
        assert_whole(partition, count)

    def test_half_validation(self):
        _, partition = make_partition(source(all=kvasir_names()), "half-validation")
        assert partition.sizes == {"train": 894, "validation": 53, "test": 53} and not partition.twins
        assert make_partition(source(all=numbered(100)), "half-validation")[1].sizes["test"] == 5

    def test_depends_on_the_names_only(self):
        names = numbered(50)
        partitions = [make_partition(rows, "80/10/10")[1] for rows in (source(all=names), source(all=names[::-1]))]
        assert partitions[0].sha256 == partitions[1].sha256
        assert make_partition(source(all=names), "80/10/10", 1)[1].sha256 != partitions[0].sha256

    @pytest.mark.parametrize("seed", range(12))
    def test_twins_and_identical_files_stay_together(self, seed):
        names = [*numbered(18), TWIN_A, TWIN_B]
        contents = [*numbered(12), *["same"] * 6, "p", "same"]  # the twin ties one more image to six identical ones
        rows = datasets.DatasetDict(all=part(names, contents))
        _, partition = make_partition(rows, "80/10/10", seed)
        side = {name: key for key in module.PARTS for name in partition.names_of(key)}
        assert len({side[name] for name in (*names[12:18], TWIN_A, TWIN_B)}) == 1
        assert partition.sizes == {"train": 16, "validation": 2, "test": 2} and not partition.twins

    @pytest.mark.parametrize("contents", [["a", "b"], ["same"] * 9])
    def test_too_few(self, contents):
        rows = datasets.DatasetDict(all=part(numbered(len(contents)), contents))
        with pytest.raises(ValueError, match=f"^{len(contents)} images .* are too few .*: add images"):
            make_partition(rows, "80/10/10")


def folds_of(rows, count, seed=42):
    return [make_partition(rows, f"fold-{number}-of-{count}", seed)[1] for number in range(1, count + 1)]


class TestFolds:
    def test_every_image_is_tested_once_and_twins_stay_together(self):
        partitions = folds_of(source(all=kvasir_names()), 5)
        tested = [name for partition in partitions for name in partition.names_of("test")]
        assert sorted(tested) == sorted(kvasir_names())
        for partition in partitions:
            assert partition.sizes == {"train": 720, "validation": 80, "test": 200} and not partition.twins
            assert_whole(partition, 1000)
            side = {name: key for key in module.PARTS for name in partition.names_of(key)}
            assert all(side[a] == side[b] for a, b in near_duplicates())

    def test_the_seed_draws_others_and_the_order_of_the_names_does_not(self):
        names = numbered(40)
        first, same, other = (
            [partition.sha256 for partition in folds_of(rows, 4, seed)]
            for rows, seed in ((source(all=names), 1), (source(all=names[::-1]), 1), (source(all=names), 2))
        )
        assert first == same and not set(first) & set(other) and len(set(first)) == 4

    @pytest.mark.parametrize(
        ("split", "count", "message"),
        [
            ("fold-0-of-5", 20, "must be one of 2 or more folds, counted from 1"),
            ("fold-6-of-5", 20, "must be one of 2 or more folds"),
            ("fold-1-of-1", 20, "must be one of 2 or more folds"),
            ("fold-5-of-5", 4, "4 images, or groups that stay together, are too few for 5 folds"),
            ("fold-1-of-five", 20, "split must be one of .*fold-1-of-5"),
        ],
    )
    def test_refused(self, split, count, message):
        with pytest.raises(ValueError, match=message):
            make_partition(source(all=numbered(count)), split)

    def test_a_negative_seed(self):
        with pytest.raises(ValueError, match="split_seed must be 0 or more, got -1"):
            make_partition(load_source("phantoms?count=20&size=64"), "80/10/10", -1)


class TestSequences:
    @pytest.fixture
    def filmed(self, tmp_path):
        """30 frames of 6 sequences as a folder's rows, and the folder."""
        names = numbered(30)
        images = [{"bytes": name.encode(), "path": str(tmp_path / "images" / f"{name}.jpg")} for name in names]
        rows = part(names)
        rows = rows.remove_columns("image").add_column("image", images).cast_column("image", rows.features["image"])
        table = "".join(f"{name},{number // 5}\n" for number, name in enumerate(names))
        (tmp_path / "sequences.csv").write_text(f"name,sequence\n{table}")
        return datasets.DatasetDict(all=rows), tmp_path

    def test_a_sequence_is_in_one_part(self, filmed):
        for partition in folds_of(filmed[0], 3):
            assert partition.sizes == {"train": 15, "validation": 5, "test": 10}
            side = {name: key for key in module.PARTS for name in partition.names_of(key)}
            for number in range(0, 30, 5):
                assert len({side[f"s{frame:03d}"] for frame in range(number, number + 5)}) == 1
        with pytest.raises(ValueError, match="30 images [(]6 when twins and identical files count once"):
            make_partition(filmed[0], "80/10/10")  # parts of 3 images are smaller than a sequence

    def test_a_table_that_lacks_images_or_columns_is_refused(self, filmed):
        rows, folder = filmed
        (folder / "sequences.csv").write_text("name,sequence\ns000,1\n")
        with pytest.raises(ValueError, match="names no sequence of 29 images: s001, s002, s003 and 26 more"):
            make_partition(rows, "fold-1-of-3")
        (folder / "sequences.csv").write_text("frame,video\ns000,1\n")
        with pytest.raises(ValueError, match="needs the columns name and sequence, got .*frame"):
            make_partition(rows, "fold-1-of-3")


class TestOwn:
    def test_parts_as_they_are(self):
        rows, partition = make_partition(source(test=["c"], train=["b", "a"], validation=["d"]), "own")
        assert [partition.names_of(key) for key in module.PARTS] == [["a", "b"], ["d"], ["c"]]
        assert [rows[index]["name"] for index in partition.train] == ["a", "b"]

    def test_missing_validation_is_cut_from_train(self):
        _, partition = make_partition(source(train=numbered(30), test=numbered(4, "t")), "own")
        assert partition.sizes == {"train": 27, "validation": 3, "test": 4}

    def test_twins_of_an_own_split_are_listed(self):
        _, partition = make_partition(source(train=[*numbered(5), TWIN_A], test=[TWIN_B, "t"]), "own")
        assert partition.twins == (TWIN_B,)

    @pytest.mark.parametrize("parts", [{"all": ["a", "b"]}, {"train": ["a"], "validation": ["b"]}, {"test": ["a"]}])
    def test_missing_test(self, parts):
        with pytest.raises(ValueError, match=f"needs a train and a test.* has {', '.join(parts)}: use one of 80/10"):
            make_partition(source(**parts), "own")

    def test_unknown_part(self):
        with pytest.raises(ValueError, match="the source has extra, test, train: use"):
            make_partition(source(train=["a"], test=["b"], extra=["c"]), "own")

    def test_one_stem_in_two_parts(self):
        with pytest.raises(ValueError, match=r"1 stems are twice in the source: a \(train and test\): keep each"):
            make_partition(source(train=["a", "b"], test=["a"]), "own")

    def test_one_file_in_two_parts(self):
        rows = datasets.DatasetDict(train=part(["a", "b", "c"], ["x", "y", "y"]), test=part(["d", "e"], ["y", "z"]))
        with pytest.raises(ValueError, match='"own": 1 byte-identical images are in two parts: b = d: take them out'):
            make_partition(rows, "own")


def test_all_is_one_test_part():
    rows, partition = make_partition(source(all=["b", "a"], train=["c"]), "all")
    assert partition.sizes == {"train": 0, "validation": 0, "test": 3}
    assert partition.names_of("test") == ["a", "b", "c"] and len(rows) == 3


def test_unknown_split():
    with pytest.raises(ValueError, match="split must be one of official, .*, own, all, got 'offical'"):
        make_partition(source(all=["a"]), "offical")


def test_digest_of_a_split_by_hand():
    _, partition = make_partition(source(test=["c"], train=["b", "a"], validation=["d"]), "own")
    assert partition.sha256 == hashlib.sha256(b"test\tc\ntrain\ta\ntrain\tb\nvalidation\td\n").hexdigest()
    assert partition.digests[0] == hashlib.sha256(b"c").hexdigest()


def test_leaks_are_reported():
    rows, partition = make_partition(source(test=[TWIN_B, "c"], train=["a", TWIN_A], validation=["d"]), "own")
    leaked = leaks(rows, partition)
    assert leaked == module.Leaks((), (), ((TWIN_B, TWIN_A),))
    assert leaks(rows, partition, ["1", "2", "2", "4", "5"]).identical == (("a", "c"),)
    overlapping = dataclasses.replace(partition, validation=partition.test)
    assert leaks(rows, overlapping).stems == tuple(sorted([TWIN_B, "c"]))
    repeated = rows.remove_columns("name").add_column("name", ["c", "c2", "c", "a", "d"])
    assert leaks(repeated, partition).stems == ("c",)


class TestRealSet:
    @pytest.mark.parametrize(
        ("split", "sizes"),
        [
            ("official", (792, 88, 120)),
            ("official-halved", (880, 60, 60)),
            ("pranet", (810, 90, 100)),
            ("80/10/10", (800, 100, 100)),
            ("half-validation", (894, 53, 53)),
        ],
    )
    def test_sizes(self, real_source, split, sizes):
        rows, partition = make_partition(real_source, split)
        assert tuple(partition.sizes.values()) == sizes and len(rows) == 1000
        assert not leaks(rows, partition).identical

    def test_official_without_twins(self, real_source):
        _, partition = make_partition(real_source, "official")
        assert len(partition.twins) == 12
        assert len(set(partition.names_of("test")) - set(partition.twins)) == 108


def test_digest_of_the_files_is_of_every_name_image_and_mask(tmp_path):
    def digest():
        return make_partition(load_source(str(tmp_path)), "80/10/10")[1].files_sha256

    for kind, value in ("images", 1), ("masks", 255):
        (tmp_path / kind).mkdir()
        for number in range(20):
            Image.new("L", (8, 8 + number), value).save(tmp_path / kind / f"{number}.png")
    digests = [digest(), digest()]
    assert digests[0] == digests[1]
    Image.new("L", (8, 8), 2).save(tmp_path / "images/0.png")
    digests.append(digest())
    Image.new("L", (8, 8), 0).save(tmp_path / "masks/0.png")
    digests.append(digest())
    for kind in ("images", "masks"):
        (tmp_path / kind / "0.png").rename(tmp_path / kind / "z.png")
    assert len({*digests, digest()}) == 4
