"""Tables, Hub data sets and what lies elsewhere give the same three columns as folders."""

import datasets
import pytest

from hub_unets.training.data.rows import has_stems
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError
from tests.training.data.source_files import assert_rows, encoded, table


class TestTables:
    def test_parquet_file(self, tmp_path):
        columns = {"name": ["x.jpg", "y.jpg", "z.jpg"], **encoded(), **encoded("annotation")}
        table(columns).to_parquet(tmp_path / "set.parquet")
        parts = load_source(str(tmp_path / "set.parquet"))
        assert list(parts) == ["all"]
        assert_rows(parts["all"], ["x", "y", "z"])
        assert parts["all"][0]["image"]["bytes"]

    def test_folder_of_parquet_files_has_parts(self, tmp_path):
        (tmp_path / "set/data").mkdir(parents=True)
        for file in ("train-00000-of-00002", "train-00001-of-00002", "valid-00000-of-00001", "test-00000-of-00001"):
            columns = {"id": [f"{file}-{i}" for i in range(3)], **encoded("picture"), **encoded("gt")}
            table(columns, ("picture", "gt")).to_parquet(tmp_path / f"set/data/{file}.parquet")
        parts = load_source(str(tmp_path / "set"))
        assert {part: len(rows) for part, rows in parts.items()} == {"train": 6, "validation": 3, "test": 3}
        assert_rows(parts["validation"], [f"valid-00000-of-00001-{i}" for i in range(3)])

    def test_stems_from_the_paths(self, tmp_path):
        table({**encoded(), **encoded("annotation")}).to_parquet(tmp_path / "set.parquet")
        assert_rows(load_source(str(tmp_path / "set.parquet"))["all"], ["frame0", "frame1", "frame2"])

    @pytest.mark.parametrize("names", [["x", "x", "x"], ["x", None, "y"]])
    def test_row_numbers_where_names_do_not_tell_rows_apart(self, tmp_path, names):
        columns = {"name": names, **encoded(path="image.jpg"), **encoded("annotation")}
        (tmp_path / "set").mkdir()
        for part in ("train", "test"):
            table(columns).to_parquet(tmp_path / f"set/{part}.parquet")
        parts = load_source(str(tmp_path / "set"))
        names = [name for rows in parts.values() for name in rows["name"]]
        assert sorted(names) == [f"row-{i:06d}" for i in range(6)]
        assert not has_stems(names)

    def test_columns_of_another_writer_and_overrides(self, tmp_path):
        columns = {**encoded("label"), **encoded("mask"), **encoded("overlay"), **encoded("photo")}
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "set.parquet")
        data = str(tmp_path / "set.parquet")
        with pytest.raises(ValueError, match="2 columns may hold the images; image columns: label, mask, overlay"):
            load_source(data)
        with pytest.raises(ValueError, match="2 columns may hold the masks; .*: name one as mask_column"):
            load_source(data, image_column="photo")
        assert_rows(load_source(data, image_column="photo", mask_column="mask")["all"], ["frame0", "frame1", "frame2"])

    def test_no_mask_column(self, tmp_path):
        table({**encoded(), "label": [0, 1, 0]}, ("image",)).to_parquet(tmp_path / "set.parquet")
        with pytest.raises(ValueError, match="no image column looks like the masks; image columns: image; all"):
            load_source(str(tmp_path / "set.parquet"))
        with pytest.raises(ValueError, match="mask_column='label' is not an image column"):
            load_source(str(tmp_path / "set.parquet"), mask_column="label")

    def test_rows_without_a_file(self, tmp_path):
        columns = {"name": ["x", "y", "z"], **encoded(), **encoded("annotation")}
        columns["annotation"][1] = None
        table(columns).to_parquet(tmp_path / "set.parquet")
        with pytest.raises(UserError, match=r"set.parquet \(.*\): column annotation: no file for y \(1 in all\): add"):
            load_source(str(tmp_path / "set.parquet"))

    def test_two_parts_of_one_name(self, monkeypatch):
        rows = table({**encoded(), **encoded("mask")}, ("image", "mask"))
        parts = datasets.DatasetDict(val=rows, validation=rows)
        monkeypatch.setattr(datasets, "load_dataset", lambda data: parts)
        with pytest.raises(ValueError, match="owner/set: two parts are called validation"):
            load_source("owner/set")

    def test_unreadable_parquet(self, tmp_path):
        (tmp_path / "set.parquet").write_text("no parquet")
        with pytest.raises(ValueError, match="set.parquet: neither here nor loadable as a data set"):
            load_source(str(tmp_path / "set.parquet"))


class TestHub:
    def test_loads_by_id(self, monkeypatch):
        rows = table({"name": ["a", "b", "c"], **encoded(), **encoded("annotation")})
        monkeypatch.setattr(datasets, "load_dataset", lambda data: datasets.DatasetDict({data: rows, "dev": rows}))
        parts = load_source("owner/kvasir.seg")
        assert set(parts) == {"owner/kvasir.seg", "validation"}
        assert_rows(parts["validation"], ["a", "b", "c"])

    def test_failed_download_names_the_id_the_reason_and_the_cure(self, monkeypatch):
        def fail(data):
            raise ConnectionError("no route to the Hub\nand a long story")

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(ValueError, match=r"owner/set: .*\(no route to the Hub\); give a folder") as caught:
            load_source("owner/set")
        assert "long story" not in str(caught.value)


class TestElsewhere:
    @pytest.mark.parametrize("data", ["nothing", "./no/folder", "set.zip", "folder/set.zip", "a/b/c", ""])
    def test_nothing_there(self, tmp_path, monkeypatch, data):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        if data:
            with pytest.raises(UserError, match="no such file .*give a folder or a .zip .*Hub id .*phantoms"):
                load_source(data)
        else:
            with pytest.raises(ValueError, match="needs a folder of images .* found no folders"):
                load_source(data)

    def test_other_kind_of_file(self, tmp_path):
        (tmp_path / "set.txt").write_text("x")
        with pytest.raises(ValueError, match="set.txt: not a kind of file that holds a data set"):
            load_source(str(tmp_path / "set.txt"))

    def test_phantoms(self):
        parts = load_source("phantoms?count=4&size=64&seed=1")
        assert set(parts) == {"train", "validation", "test"}
        assert_rows(parts["train"], list(parts["train"]["name"]))
        assert len(parts["train"]) == 4

    def test_phantoms_errors(self):
        with pytest.raises(ValueError, match="unknown key 'sise'; did you mean 'size'"):
            load_source("phantoms?sise=64")
        with pytest.raises(ValueError, match="count must be a whole number, got 'many'"):
            load_source("phantoms?count=many")
        with pytest.raises(ValueError, match="count must be at most 100000, got 1000000000"):
            load_source("phantoms?count=1000000000")
