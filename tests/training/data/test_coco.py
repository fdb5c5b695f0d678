"""COCO files of every dialect become the masks they mean."""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as api

from hub_unets.training.data import coco_masks
from hub_unets.training.data.reading import read_labels
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError

POLYGON = [[1, 1, 5, 1, 5, 4, 1, 4]]  # columns 1 to 4, rows 1 to 3
UNCOMPRESSED = {"size": [6, 8], "counts": [6, 3, 39]}  # column 1, rows 0 to 2


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def inside(rows, columns, label=1):
    mask = np.zeros((6, 8), np.uint8)
    mask[rows, columns] = label
    return mask


def write(folder, annotations, file="annotations.json", images="", names=("a.png",), categories=("polyp",), **fields):
    """A COCO file of 8 x 6 images; annotations are of the first unless they name another."""
    for name in names:
        (folder / images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / images / name)
    image_entries = [
        {"id": 10 + number, "file_name": name, "width": 8, "height": 6, **fields} for number, name in enumerate(names)
    ]
    entries = [
        {"id": number, "image_id": 10, "category_id": 3, "iscrowd": 0, **row} for number, row in enumerate(annotations)
    ]
    kinds = [{"id": 3 + number, "name": name} for number, name in enumerate(categories)]
    content = {"images": image_entries, "annotations": entries, "categories": kinds}
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    return str(folder / file)


def labels(data, num_labels=2, **options):
    (rows,) = load_source(str(data), **options).values()
    return {row["name"]: read_labels(row["annotation"], row["name"], num_labels) for row in rows}


def compressed(mask):
    encoded = api.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


class TestMasks:
    @pytest.mark.parametrize(
        ("segmentation", "expected"),
        [
            (POLYGON, inside(slice(1, 4), slice(1, 5))),
            (UNCOMPRESSED, inside(slice(0, 3), 1)),
            (compressed(inside(slice(2, 6), slice(3, 8))), inside(slice(2, 6), slice(3, 8))),
            ([*POLYGON, [6, 0, 8, 0, 8, 6, 6, 6]], inside(slice(1, 4), slice(1, 5)) | inside(slice(6), slice(6, 8))),
        ],
    )
    @pytest.mark.parametrize("iscrowd", [0, 1])
    def test_each_form(self, tmp_path, segmentation, expected, iscrowd):
        data = write(tmp_path, [{"segmentation": segmentation, "iscrowd": iscrowd}])
        np.testing.assert_array_equal(labels(data)["a"], expected)

    def test_polyps_of_an_image_are_united_and_an_image_without_any_is_empty(self, tmp_path):
        data = write(tmp_path, [{"segmentation": POLYGON}, {"segmentation": UNCOMPRESSED}], names=("a.png", "b.png"))
        masks = labels(data)
        expected = inside(slice(1, 4), slice(1, 5)) | inside(slice(0, 3), 1)
        np.testing.assert_array_equal(masks["a"], expected)
        assert not masks["b"].any()

    def test_a_category_is_the_label_of_its_name(self, tmp_path, capsys):
        annotations = [{"segmentation": POLYGON, "category_id": 4}, {"segmentation": UNCOMPRESSED}]
        data = write(tmp_path, annotations, categories=("Boundary", "polyp", "unused"))
        np.testing.assert_array_equal(labels(data)["a"], inside(slice(1, 4), slice(1, 5)))
        assert "not called polyp, with so many annotations: Boundary (1)" in capsys.readouterr().err
        id2label = {0: "background", 1: "polyp", 2: "boundary"}
        expected = inside(slice(1, 4), slice(1, 5))
        expected[0:3, 1] = 2  # the later one lies above
        np.testing.assert_array_equal(labels(data, 3, id2label=id2label)["a"], expected)
        with pytest.raises(ValueError, match="no label is called polyp; the model's are background, lesion, boundary"):
            load_source(data, id2label={0: "background", 1: "lesion", 2: "boundary"})

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ([], "annotation 0 has no segmentation, a box is no mask"),
            ([[1, 1, 5, 4]], "fewer than three points"),
            ({"size": [8, 6], "counts": [48]}, r"size \[8, 6\]"),
            ({"size": [6, 8], "counts": [6, 3]}, "run lengths of 9 pixels"),
            ({"size": [6, 8], "counts": ""}, "run lengths of 0 pixels"),
            ({"size": [6, 8], "counts": compressed(inside(slice(0, 3), 1))["counts"][:-1]}, "run lengths of"),
        ],
    )
    def test_what_is_no_mask_is_named(self, tmp_path, segmentation, message):
        data = write(tmp_path, [{"segmentation": segmentation}])
        with pytest.raises(ValueError, match=message):
            load_source(data)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"image_id": 77}, "image 77, which is not listed"),
            ({"category_id": 9}, "category 9, which is not listed"),
        ],
    )
    def test_ids_that_lead_nowhere(self, tmp_path, wrong, message):
        with pytest.raises(ValueError, match=message):
            load_source(write(tmp_path, [{"segmentation": POLYGON, **wrong}]))

    def test_an_image_of_another_size_than_it_says(self, tmp_path):
        with pytest.raises(ValueError, match="size"):
            load_source(write(tmp_path, [{"segmentation": UNCOMPRESSED}], height=7))
        for size in ({"height": "tall"}, {"height": -6}, {"width": 8.5}, {"height": 10**9, "width": 10**9}):
            with pytest.raises(ValueError, match="a.png has the height .*which no image has"):
                load_source(write(tmp_path, [], **size))

    @pytest.mark.parametrize("size", [{"height": "6", "width": 8.0}, {"height": None}, {"height": 0, "width": 0}])
    def test_sizes_that_are_meant(self, tmp_path, size):
        assert labels(write(tmp_path, [{"segmentation": UNCOMPRESSED}], **size))["a"].sum() == 3


class TestNumbers:
    """Refused with file, annotation and value, and memory never grows with a coordinate."""

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (None, "null, which is no number"),
            (float("nan"), "nan, which is no number"),
            (float("inf"), "inf, which is no number"),
            ("left", "'left', which is no number"),
            ({}, "{}, which is no number"),
            (10**400, "1000.*, which is no number"),
            (1e7, "10000000.0, far outside its image of 8 x 6 pixels: mend"),
            (-9, "-9, far outside"),
        ],
    )
    def test_coordinates(self, tmp_path, value, message):
        for segmentation in ([[1, 1, value, 1, value, 4, 1, 4]], [1, 1, 5, 1, 5, value, 1, 4]):
            data = write(tmp_path, [{"segmentation": POLYGON}, {"segmentation": segmentation}])
            with pytest.raises(UserError, match=f"annotations.json: annotation 1 has the coordinate {message}"):
                load_source(data)

    def test_a_little_outside_is_cut_off(self, tmp_path):
        data = write(tmp_path, [{"segmentation": [[-2, -1.5, 9, -1.5, 9, 7, -2, 7]]}])
        assert labels(data)["a"].all()

    def test_an_outline_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(coco_masks, "LONGEST_OUTLINE", 100)
        data = write(tmp_path, [{"segmentation": [[0, 0, 8, 6] * 20]}])
        with pytest.raises(UserError, match="annotation 0 has an outline of .* pixels, the limit is 100: simplify"):
            load_source(data)

    @pytest.mark.parametrize(
        "counts", [[6, -3, 45], [6, None, 42], [6, 3, 1e30], "~", "o" * 100_000, "0o", 7, None, [[]]]
    )
    def test_run_lengths(self, tmp_path, counts):
        data = write(tmp_path, [{"segmentation": {"size": [6, 8], "counts": counts}}])
        with pytest.raises(UserError, match="annotation 0 has run lengths of .*: export it again"):
            load_source(data)

    def test_an_annotation_without_a_pixel_is_named(self, tmp_path, capsys):
        data = write(tmp_path, [{"segmentation": POLYGON}, {"segmentation": [[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]]}])
        assert labels(data)["a"].sum() == 12
        assert "left out 1 annotations that mark no pixel: 1 of a.png" in capsys.readouterr().err


class TestCategories:
    def test_background_marks_nothing(self, tmp_path, capsys):
        annotations = [
            {"segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]], "category_id": 3},
            {"segmentation": POLYGON, "category_id": 4},
            {"segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]], "category_id": 5},
        ]
        for names in (("background", "polyp", "_background_"), ("BG", "Polyps", "Background")):
            data = write(tmp_path, annotations, categories=names)
            for id2label in (None, {0: "background", 1: "polyp"}, {0: "other", 1: "polyp", 2: "edge"}):
                np.testing.assert_array_equal(labels(data, id2label=id2label)["a"], inside(slice(1, 4), slice(1, 5)))
        assert not capsys.readouterr().err

    def test_what_nobody_asked_for_is_left_out_and_named(self, tmp_path, capsys):
        annotations = [{"segmentation": UNCOMPRESSED, "category_id": 4}, {"segmentation": POLYGON}]
        data = write(tmp_path, annotations, categories=("polyp", "instrument"))
        for id2label in (None, {0: "background", 1: "polyp"}):
            np.testing.assert_array_equal(labels(data, id2label=id2label)["a"], inside(slice(1, 4), slice(1, 5)))
            text = capsys.readouterr().err
            assert "left out 1 categories that are not called polyp, with so many annotations: instrument (1)" in text

    def test_no_category_of_the_labels_name(self, tmp_path):
        data = write(tmp_path, [{"segmentation": POLYGON}], categories=("lesion", "background"))
        with pytest.raises(UserError, match="no label is called lesion; the model's are background, polyp: name the"):
            load_source(data, id2label={0: "background", 1: "polyp"})
        assert labels(data, id2label={0: "background", 1: "lesion"})["a"].sum() == 12
        assert labels(data)["a"].sum() == 12

    def test_a_supercategory_joins_several(self, tmp_path):
        annotations = [{"segmentation": UNCOMPRESSED, "category_id": 4}, {"segmentation": POLYGON}]
        data = write(tmp_path, annotations, categories=("adenoma", "serrated"))
        content = json.loads(Path(data).read_text())
        for category in content["categories"]:
            category["supercategory"] = "polyp"
        Path(data).write_text(json.dumps(content))
        mask = labels(data, id2label={0: "background", 1: "polyp"})["a"]
        np.testing.assert_array_equal(mask, inside(slice(1, 4), slice(1, 5)) | inside(slice(0, 3), 1))


def changed(folder, change, **options):
    """A file of one polyp in a.png, whose content `change` has changed."""
    data = Path(write(folder, [{"segmentation": POLYGON}], **options))
    content = json.loads(data.read_text())
    change(content)
    data.write_text(json.dumps(content))
    return str(data)


class TestExports:
    """Variants that tools and other machines write are read correctly, or refused by name."""

    @pytest.mark.parametrize(
        "segmentation",
        [
            POLYGON[0],
            [[1, 1], [5, 1], [5, 4], [1, 4]],
            [[[1, 1], [5, 1], [5, 4], [1, 4]]],
            [["1", "1", "5", 1.0, "5.0", 4, 1, 4]],
            [{"size": ["6", 8.0], "counts": [7, "3", 3, 3.0, 3, 3, 3, 3, 20]}],
        ],
    )
    def test_spellings_of_one_polygon(self, tmp_path, segmentation):
        np.testing.assert_array_equal(
            labels(write(tmp_path, [{"segmentation": segmentation}]))["a"], inside(slice(1, 4), slice(1, 5))
        )

    @pytest.mark.parametrize("kind", [str, float])
    def test_ids_as_texts_or_floats(self, tmp_path, kind):
        def change(content):
            content["annotations"][0]["image_id"] = kind(10)
            content["categories"][0]["id"] = kind(3)

        assert labels(changed(tmp_path, change))["a"].sum() == 12

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_byte_order_mark(self, tmp_path, encoding):
        data = Path(write(tmp_path, [{"segmentation": POLYGON}]))
        data.write_text(data.read_text(), encoding=encoding)
        assert labels(data)["a"].sum() == 12
        assert labels(tmp_path)["a"].sum() == 12

    @pytest.mark.parametrize(
        "name",
        [
            "images\\a b.png",
            "C:\\Users\\me\\set\\images\\a b.png",
            "/home/me/set/images/a b.png",
            "..\\..\\label-studio\\media\\upload\\1\\0a1b2c3d-a b.png",
            "/data/local-files/?d=set/images/a b.png",
            "https://host/upload/a%20b.png",
            "images/a%20b.png",
        ],
    )
    def test_paths_of_another_machine(self, tmp_path, name):
        def change(content):
            content["images"][0]["file_name"] = name

        data = changed(tmp_path, change, images="images", names=("a b.png",))
        (row,) = load_source(data)["all"]
        assert (row["name"], row["image"]["path"]) == ("a b", str(tmp_path / "images" / "a b.png"))

    @pytest.mark.parametrize("name", ["x" * 5000, "a\0.png", "\ud800.png", "a/" * 5000, "/", ".."])
    def test_names_that_no_file_has(self, tmp_path, name):
        with pytest.raises(UserError, match="annotations.json: no .*name the images' folder as image_column"):
            load_source(changed(tmp_path, lambda content: content["images"][0].update(file_name=name)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c["images"].append({"id": "10", "file_name": "b"}), "'a.png' and 'b' both have the id 10"),
            (lambda c: c["images"].append({**c["images"][0], "id": 11}), r"images 10 \('a.png'\) and 11 .*are both"),
            (lambda c: c["categories"].append({"id": "3", "name": "fold"}), "'polyp' and 'fold' both have the id 3"),
            (lambda c: c["images"][0].pop("file_name"), r"images\[0\] \(id 10\) has no file_name"),
            (lambda c: c["images"][0].pop("id"), "image 'a.png' has no id"),
            (lambda c: c["images"].append(None), r"images\[1\] is None, not an object"),
            (lambda c: c["annotations"].append([]), r"annotations\[1\] is \[\], not an object"),
            (lambda c: c["annotations"][0].pop("image_id"), "annotation 0 is of image None, which is not listed"),
            (lambda c: c["annotations"][0].pop("category_id"), "annotation 0 is of category None, which is not"),
            (lambda c: c["annotations"][0].pop("segmentation"), "annotation 0 has no segmentation"),
            (lambda c: c["annotations"][0].update(id=None, segmentation="x"), r"annotations\[0\] has no segmentation"),
            (lambda c: c["categories"][0].pop("name"), r"categories\[0\] needs an id and a name"),
        ],
    )  # fmt: skip
    def test_refused(self, tmp_path, change, message):
        with pytest.raises(UserError, match=f"annotations.json: .*{message}"):
            load_source(changed(tmp_path, change))

    def test_an_image_that_is_listed_twice_is_one(self, tmp_path):
        assert (
            labels(changed(tmp_path, lambda content: content["images"].append(content["images"][0])))["a"].sum() == 12
        )

    def test_json_without_end(self, tmp_path):
        (tmp_path / "a.json").write_text("[" * 100_000)
        with pytest.raises(UserError, match="a.json: not COCO instances"):
            load_source(str(tmp_path / "a.json"))


class TestPlaces:
    def test_cvat(self, tmp_path):
        write(tmp_path, [{"segmentation": POLYGON}], "annotations/instances_default.json", "images/default")
        for data in (tmp_path, tmp_path / "annotations" / "instances_default.json"):
            assert labels(data)["a"].sum() == 12

    def test_roboflow(self, tmp_path):
        for part in ("train", "valid", "test"):
            write(tmp_path / part, [], "_annotations.coco.json", names=(f"{part}.rf.1.png",))
        parts = load_source(str(tmp_path))
        assert {part: rows["name"][:] for part, rows in parts.items()} == {
            "train": ["train.rf.1"], "validation": ["valid.rf.1"], "test": ["test.rf.1"]
        }  # fmt: skip

    def test_coco_itself(self, tmp_path):
        for part in ("train2017", "val2017"):
            write(tmp_path, [], f"annotations/instances_{part}.json", part, names=(f"{part}.png",))
        assert set(load_source(str(tmp_path))) == {"train", "validation"}

    def test_one_file_beside_its_images_or_named_from_the_command(self, tmp_path):
        write(tmp_path / "one", [{"segmentation": POLYGON}])
        assert labels(tmp_path / "one")["a"].sum() == 12
        write(tmp_path / "two", [{"segmentation": POLYGON}], images="../elsewhere")
        with pytest.raises(ValueError, match="no a.png in .*name the images' folder as image_column"):
            load_source(str(tmp_path / "two"))
        assert labels(tmp_path / "two", image_column="../elsewhere")["a"].sum() == 12

    def test_images_of_one_stem_keep_their_folders(self, tmp_path):
        assert set(labels(write(tmp_path, [], names=("x/a.png", "y/a.png")))) == {"x/a", "y/a"}

    def test_a_folder_of_masks_comes_first_and_other_json_is_no_coco(self, tmp_path):
        write(tmp_path, [{"segmentation": POLYGON}], images="images")
        (tmp_path / "masks").mkdir()
        Image.new("L", (8, 6), 255).save(tmp_path / "masks" / "a.png")
        assert labels(tmp_path)["a"].sum() == 48
        (tmp_path / "masks" / "a.png").unlink()
        (tmp_path / "boxes.json").write_text('{"a": {"bbox": []}}')
        assert labels(tmp_path)["a"].sum() == 12

    def test_two_files_of_one_part_and_files_of_another_kind(self, tmp_path):
        data = write(tmp_path, [])
        write(tmp_path, [], "b.json")
        with pytest.raises(ValueError, match="two COCO files, annotations.json and b.json: give one of them"):
            load_source(str(tmp_path))
        assert len(load_source(data)["all"]) == 1
        (tmp_path / "b.json").write_text("[]")
        with pytest.raises(ValueError, match="not COCO instances"):
            load_source(str(tmp_path / "b.json"))


def test_without_pycocotools_the_error_names_the_extra(tmp_path, monkeypatch):
    data = write(tmp_path, [])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install 'hub-unets\[coco\]'"):
        load_source(data)
