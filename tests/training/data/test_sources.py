"""Folders and zips give the same three columns, and every way to get them wrong says what is wrong."""

import errno
import json
import os
import zipfile
from pathlib import Path

import datasets
import pytest

from hub_unets.training.data import zips
from hub_unets.training.data.files import first_few, image_files, say_left_out
from hub_unets.training.data.reading import file_digest, read_image, read_pair
from hub_unets.training.data.rows import has_stems
from hub_unets.training.data.sources import load_frames, load_source
from hub_unets.training.errors import UserError
from tests.training.data.source_files import assert_rows, encoded, real_set, table, write_image, write_pairs, write_zip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


class TestFolders:
    def test_authors_layout_is_paired_by_stem_and_not_loaded(self, tmp_path):
        parts = load_source(str(write_pairs(tmp_path / "set", ("b", "a.1", "c"))))
        assert list(parts) == ["all"]
        assert_rows(parts["all"], ["a.1", "b", "c"])
        row = parts["all"][0]
        assert row["image"] == {"bytes": None, "path": str(tmp_path / "set/images/a.1.jpg")}
        assert row["annotation"] == {"bytes": None, "path": str(tmp_path / "set/masks/a.1.png")}

    @pytest.mark.parametrize(("images", "masks"), [("image", "mask"), ("imgs", "Labels"), ("Images", "annotations")])
    def test_other_names_of_the_two_folders(self, tmp_path, images, masks):
        assert len(load_source(str(write_pairs(tmp_path / "set", images=images, masks=masks)))["all"]) == 3

    def test_parts_are_folders(self, tmp_path):
        for part in ("train", "val", "test"):
            write_pairs(tmp_path / "set" / part, (part + "1", part + "2"))
        parts = load_source(str(tmp_path / "set"))
        assert {part: list(rows["name"]) for part, rows in parts.items()} == {
            "test": ["test1", "test2"],
            "train": ["train1", "train2"],
            "validation": ["val1", "val2"],
        }

    def test_columns_name_the_folders(self, tmp_path):
        folder = write_pairs(tmp_path / "set", images="frames", masks="ground")
        assert len(load_source(str(folder), image_column="frames", mask_column="ground")["all"]) == 3

    def test_hidden_and_other_files_are_passed_over(self, tmp_path):
        folder = write_pairs(tmp_path / "set")
        (folder / "images/._a.jpg").write_bytes(b"x")
        (folder / "images/Thumbs.db").write_bytes(b"x")
        assert len(load_source(str(folder))["all"]) == 3

    def test_missing_mask(self, tmp_path):
        folder = write_pairs(tmp_path / "set", [f"s{i}" for i in range(6)])
        for number in range(5):
            (folder / f"masks/s{number}.png").unlink()
        with pytest.raises(ValueError, match=r"masks: no file has the stem of s0.jpg, s1.jpg, s2.jpg and 2 more \(5"):
            load_source(str(folder))

    def test_mask_without_image(self, tmp_path):
        folder = write_pairs(tmp_path / "set")
        (folder / "images/b.jpg").unlink()
        with pytest.raises(ValueError, match=r"images: no file has the stem of b.png \(1 in all\): add what is"):
            load_source(str(folder))

    def test_two_files_of_one_stem(self, tmp_path):
        folder = write_pairs(tmp_path / "set")
        write_image(folder / "images/b.png")
        with pytest.raises(ValueError, match="b.jpg and b.png have the same stem: keep one"):
            load_source(str(folder))

    def test_empty_folder(self, tmp_path):
        folder = write_pairs(tmp_path / "set")
        for file in (folder / "images").iterdir():
            file.unlink()
        with pytest.raises(ValueError, match="images: holds no image files"):
            load_source(str(folder))

    def test_no_known_folders(self, tmp_path):
        write_pairs(tmp_path / "set", images="frames", masks="ground")
        with pytest.raises(ValueError, match=r"needs a folder of images .* found frames, ground: rename them"):
            load_source(str(tmp_path / "set"))

    def test_masks_missing_beside_images(self, tmp_path):
        write_pairs(tmp_path / "set", masks="ground")
        with pytest.raises(ValueError, match=r"no masks beside images/: call them masks\|mask\|.*or name mask_column"):
            load_source(str(tmp_path / "set"))

    def test_two_folders_of_masks(self, tmp_path):
        write_pairs(write_pairs(tmp_path / "set"), masks="labels")
        with pytest.raises(ValueError, match=r"two folders may hold the masks \(labels, masks\): name one as mask"):
            load_source(str(tmp_path / "set"))
        assert len(load_source(str(tmp_path / "set"), mask_column="labels")["all"]) == 3

    def test_two_folders_of_one_part(self, tmp_path):
        write_pairs(tmp_path / "set/val")
        write_pairs(tmp_path / "set/valid")
        with pytest.raises(ValueError, match="two folders for the part validation: merge valid"):
            load_source(str(tmp_path / "set"))

    @pytest.mark.parametrize("table_file", ["metadata.csv", "metadata.jsonl"])
    def test_metadata_pairs_by_file_name(self, tmp_path, table_file):
        for part in ("train", "test"):
            folder = tmp_path / "set" / part
            write_image(folder / "x.jpg")
            write_image(folder / "x_outline.png", 255, mode="L")
            row = {"file_name": "x.jpg", "mask_file_name": "x_outline.png"}
            lines = [",".join(row), ",".join(row.values())] if table_file.endswith("csv") else [json.dumps(row)]
            (folder / table_file).write_text("\n".join(lines))
        parts = load_source(str(tmp_path / "set"))
        assert set(parts) == {"train", "test"}
        assert_rows(parts["test"], ["x"])
        assert parts["test"][0]["annotation"]["path"].endswith("test/x_outline.png")

    def test_metadata_of_something_else_is_passed_over(self, tmp_path):
        (write_pairs(tmp_path / "set") / "metadata.csv").write_text("stem,age\na,61\n")
        assert len(load_source(str(tmp_path / "set"))["all"]) == 3


class TestNothingVanishes:
    """Whatever is left out is counted and named; FIFOs are never opened."""

    def test_less_usual_suffixes(self, tmp_path, capsys):
        folder = tmp_path / "set"
        suffixes = ["jfif", "jpe", "JPG", "ppm", "tga", "jp2", "avif", "webp", "dib"]
        for suffix in suffixes:
            write_image(folder / f"images/{suffix}.{suffix}")
            write_image(folder / f"masks/{suffix}.pgm", 255, mode="L")
        rows = load_source(str(folder))["all"]
        assert_rows(rows, sorted(suffixes))
        assert all(read_pair(row)[1].all() for row in rows)
        assert not capsys.readouterr().err

    def test_other_files(self, tmp_path, capsys):
        folder = write_pairs(tmp_path / "set")
        for name in ("d.heic", "e.txt", "f", ".hidden.jpg", "Thumbs.db"):
            (folder / "images" / name).write_bytes(b"x")
        assert_rows(load_source(str(folder))["all"], ["a", "b", "c"])
        assert capsys.readouterr().err == f"{folder}/images: left out 3 that are no image files: d.heic, e.txt, f\n"

    def test_numpy_and_dicom_files_beside_pictures(self, tmp_path, capsys):
        folder = write_pairs(tmp_path / "set")
        for name in ("images/a.npz", "images/b.dcm", "images/features.npy", "images/d.npy", "masks/d.npy"):
            (folder / name).write_bytes(b"x")
        rows = load_source(str(folder))["all"]
        assert_rows(rows, ["a", "b", "c", "d"])
        assert [Path(row["image"]["path"]).suffix for row in rows] == [".jpg", ".jpg", ".jpg", ".npy"]
        left_out = "left out 3 NumPy or DICOM files beside pictures: a.npz, b.dcm, features.npy"
        assert capsys.readouterr().err == f"{folder}/images: {left_out}\n"
        assert [path.name for path in image_files(folder / "images")[0]] == ["a.jpg", "b.jpg", "c.jpg"]
        (folder / "masks/a.npy").write_bytes(b"x")
        with pytest.raises(ValueError, match="a.npy and a.png have the same stem: keep one"):
            load_source(str(folder))

    def test_sub_folders_are_read(self, tmp_path):
        folder = write_pairs(tmp_path / "set", ("a", "v1/a", "v1/w.2/b"))
        assert_rows(load_source(str(folder))["all"], ["a", "v1/a", "v1/w.2/b"])
        (folder / "masks/v1/a.png").unlink()
        with pytest.raises(UserError, match=r"masks: no file has the stem of v1/a.jpg \(1 in all\)"):
            load_source(str(folder))

    def test_parts_with_odd_names_and_images_beside(self, tmp_path, capsys):
        for part in ("train", "test", "holdout"):
            write_pairs(tmp_path / "set" / part, (part + "1", part + "2"))
        write_image(tmp_path / "set/cover.png")
        write_image(tmp_path / "set/test/overlays/a.png")
        assert set(load_source(str(tmp_path / "set"))) == {"train", "test"}
        messages = capsys.readouterr().err.splitlines()
        assert f"{tmp_path}/set/test: left out 1 beside images, masks: overlays (1 images)" in messages
        assert f"{tmp_path}/set: left out 2 beside test, train: cover.png, holdout (4 images)" in messages

    def test_tables_of_no_part(self, tmp_path, capsys):
        (tmp_path / "set").mkdir()
        for file in ("train", "test", "holdout"):
            columns = {"id": [f"{file}-{i}" for i in range(3)], **encoded(), **encoded("mask")}
            table(columns, ("image", "mask")).to_parquet(tmp_path / f"set/{file}.parquet")
        parts = load_source(str(tmp_path / "set"))
        assert {part: len(rows) for part, rows in parts.items()} == {"train": 3, "test": 3}
        assert "left out 1 tables whose names say neither" in (message := capsys.readouterr().err)
        assert "holdout.parquet" in message

    def test_images_that_metadata_does_not_list(self, tmp_path, capsys):
        folder = write_pairs(tmp_path / "set", images=".", masks="outlines")
        (folder / "metadata.csv").write_text("file_name,mask_file_name\na.jpg,outlines/a.png\n")
        assert_rows(load_source(str(folder))["all"], ["a"])
        assert "left out 4 images that are not listed: b.jpg, b.png, c.jpg and 1 more" in capsys.readouterr().err

    def test_metadata_with_a_name_that_no_file_has(self, tmp_path):
        folder = write_pairs(tmp_path / "set", images=".", masks="outlines")
        (folder / "metadata.csv").write_text("file_name,mask_file_name\na.jpg,outlines/a\0.png\n")
        (row,) = load_source(str(folder))["all"]
        with pytest.raises(UserError, match="^a .*not a readable image"):
            read_pair(row)
        with pytest.raises(UserError, match="can't be read"):
            file_digest(row["annotation"])

    def test_images_that_coco_does_not_list(self, tmp_path, capsys):
        for name in ("a.png", "b.png", "c.png"):
            write_image(tmp_path / "set/images" / name)
        image = {"id": 1, "file_name": "a.png", "width": 32, "height": 24}
        for part, images in ("train", [image]), ("val", [{**image, "file_name": "b.png"}]):
            content = {"images": images, "annotations": [], "categories": []}
            (tmp_path / f"set/instances_{part}.json").write_text(json.dumps(content))
        assert set(load_source(str(tmp_path / "set"))) == {"train", "validation"}
        assert "left out 1 images that are not listed: c.png" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["images/d.jpg", "metadata.csv", "a.json", "a.parquet", "images/d"])
    def test_fifos(self, tmp_path, name):
        folder = write_pairs(tmp_path / "set")
        os.mkfifo(folder / name)
        assert_rows(load_source(str(folder))["all"], ["a", "b", "c"])
        if name == "images/d.jpg":
            assert len(load_frames(str(folder / "images"))) == 3

    def test_a_fifo_that_a_table_names(self, tmp_path):
        os.mkfifo(tmp_path / "a.png")
        value = {"bytes": None, "path": str(tmp_path / "a.png")}
        with pytest.raises(UserError, match="a.png.*: not a readable image .*not a plain file"):
            read_image(value, "a")
        with pytest.raises(UserError, match="a.png: can't be read"):
            file_digest(value)

    def test_what_is_said_is_said_by_the_first_process(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        say_left_out(tmp_path, ["a"], "files")
        monkeypatch.setenv("LOCAL_RANK", "0")
        say_left_out(tmp_path, [], "files")
        assert not capsys.readouterr().err


class TestZip:
    def zipped(self, tmp_path, prefix=""):
        folder = write_pairs(tmp_path / "set")
        files = [file for file in folder.rglob("*") if file.is_file()]
        entries = [(prefix + str(file.relative_to(folder)), file.read_bytes()) for file in files]
        return write_zip(tmp_path / "set.zip", entries)

    @pytest.mark.parametrize("prefix", ["", "Kvasir-SEG/"])
    def test_unpacked_once_under_its_digest(self, tmp_path, cache, prefix):
        data = self.zipped(tmp_path, prefix)
        parts = load_source(data)
        assert_rows(parts["all"], ["a", "b", "c"])
        first = Path(parts["all"][0]["image"]["path"])
        assert first.is_relative_to(cache / "hub_unets") and len(first.relative_to(cache).parts[1]) == 64
        written = first.stat().st_mtime_ns
        assert Path(load_source(data)["all"][0]["image"]["path"]).stat().st_mtime_ns == written
        assert len(list((cache / "hub_unets").iterdir())) == 1

    @pytest.mark.parametrize("name", ["../out.jpg", "a/../../out.jpg", "/out.jpg", "..\\out.jpg", "C:\\out.jpg"])
    def test_names_that_lead_outside(self, tmp_path, cache, name):
        data = write_zip(tmp_path / "set.zip", [("images/a.jpg", b"x"), (name, b"x")])
        with pytest.raises(ValueError, match="set.zip: .*out.jpg' is a link or leads outside the folder: pack plain"):
            load_source(data)
        assert not list((cache / "hub_unets").iterdir())
        assert not list(tmp_path.rglob("out.jpg"))

    def test_symbolic_link(self, tmp_path):
        link = zipfile.ZipInfo("images/a.jpg")
        link.external_attr = 0o120777 << 16
        with pytest.raises(ValueError, match="'images/a.jpg' is a link"):
            load_source(write_zip(tmp_path / "set.zip", [(link, "/etc/passwd")]))

    def test_bomb_by_ratio(self, tmp_path, cache):
        data = write_zip(tmp_path / "set.zip", [("images/a.bmp", bytes(2_000_000))])
        with pytest.raises(ValueError, match="unpacks to 2,000,000 bytes, the limit is"):
            load_source(data)
        assert not list((cache / "hub_unets").iterdir())

    def test_bomb_by_size(self, tmp_path, monkeypatch):
        monkeypatch.setattr(zips, "MAX_UNZIPPED_BYTES", 100)
        with pytest.raises(ValueError, match="bytes, the limit is 100: unpack it yourself"):
            load_source(self.zipped(tmp_path))

    def test_backslashes_are_slashes(self, tmp_path):
        files = {file.relative_to(tmp_path / "set"): file for file in write_pairs(tmp_path / "set").rglob("*.*g")}
        entries = [(str(name).replace("/", "\\"), file.read_bytes()) for name, file in files.items()]
        assert_rows(load_source(write_zip(tmp_path / "set.zip", entries))["all"], ["a", "b", "c"])

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("images/a.jpg", "images/a.jpg"), "holds 'images/a.jpg' twice: keep one"),
            (("images", "images/a.jpg"), "not a readable zip"),
            (("images/" + "a" * 300 + ".jpg",), "not a readable zip .*too long"),
        ],
    )
    def test_names_that_no_folder_holds(self, tmp_path, cache, names, message):
        with pytest.raises(UserError, match=f"set.zip: {message}"):
            load_source(write_zip(tmp_path / "set.zip", [(name, b"x") for name in names]))
        assert not list((cache / "hub_unets").iterdir())

    def test_a_cache_without_room_is_no_fault_of_the_zip(self, tmp_path, monkeypatch):
        def fail(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(zipfile.ZipFile, "extract", fail)
        with pytest.raises(OSError, match="set.zip: can't be unpacked into .*No space left .*: make room"):
            load_source(self.zipped(tmp_path))

    def test_broken(self, tmp_path, cache):
        path = Path(self.zipped(tmp_path))
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(ValueError, match="set.zip: not a readable zip .*: download or pack it again"):
            load_source(str(path))
        assert not list((cache / "hub_unets").iterdir())

    def test_corrupt_content_leaves_nothing(self, tmp_path, cache):
        path = Path(write_zip(tmp_path / "set.zip", [("images/a.jpg", bytes(range(256)))]))
        content = bytearray(path.read_bytes())
        content[60:70] = b"0123456789"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable zip"):
            load_source(str(path))
        assert not list((cache / "hub_unets").iterdir())


def test_has_stems():
    assert has_stems(["row-000000", "a"])
    assert not has_stems(["row-000000", "row-000001"])


def test_first_few():
    assert first_few("ab") == "a, b"
    assert first_few("abcde", 2) == "a, b and 3 more"


def test_real_set():
    parts = load_source(str(real_set()))
    assert len(parts["all"]) == 1000
    assert all(Path(row["image"]["path"]).stem == row["name"] for row in parts["all"])
