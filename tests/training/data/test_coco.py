"""COCO files of every dialect become the masks they mean."""

import json
import sys

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as api

from hub_unets.training.data.reading import read_labels
from hub_unets.training.data.sources import load_source

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
    """A COCO file of 8 x 6 images; annotations are of the first unless they say."""
    for name in names:
        (folder / images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / images / name)
    listed = [
        {"id": 10 + number, "file_name": name, "width": 8, "height": 6, **fields} for number, name in enumerate(names)
    ]
    given = [
        {"id": number, "image_id": 10, "category_id": 3, "iscrowd": 0, **one} for number, one in enumerate(annotations)
    ]
    kinds = [{"id": 3 + number, "name": name} for number, name in enumerate(categories)]
    content = {"images": listed, "annotations": given, "categories": kinds}
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
        found = labels(data)
        expected = inside(slice(1, 4), slice(1, 5)) | inside(slice(0, 3), 1)
        np.testing.assert_array_equal(found["a"], expected)
        assert not found["b"].any()

    def test_two_labels_take_every_category_and_more_go_by_name(self, tmp_path):
        annotations = [{"segmentation": POLYGON, "category_id": 4}, {"segmentation": UNCOMPRESSED}]
        data = write(tmp_path, annotations, categories=("Boundary", "polyp", "unused"))
        assert set(np.unique(labels(data)["a"])) == {0, 1}
        of_three = {0: "background", 1: "polyp", 2: "boundary"}
        expected = inside(slice(1, 4), slice(1, 5))
        expected[0:3, 1] = 2  # the later one lies above
        np.testing.assert_array_equal(labels(data, 3, id2label=of_three)["a"], expected)
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
        with pytest.raises(ValueError, match="no height and width"):
            load_source(write(tmp_path, [], height=None))


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
