"""Whatever a person names becomes items whose names never clash."""

import json
import os
import sys
import zipfile

import datasets
import pytest
from PIL import Image

from hub_unets.hub_repos.inference.inputs import collect
from hub_unets.hub_repos.inference.video import Video
from hub_unets.training.data.phantoms import phantom, phantom_dataset
from hub_unets.training.data.reading import read_image
from tests.hub_repos.clips import video


def picture(path, colour=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 40, 40)).save(path)
    return str(path)


def names(arguments, tmp_path, every=1):
    items = collect(arguments, tmp_path / "out", every).items
    return [frame.name for item in items for frame in (item.items() if isinstance(item, Video) else [item])]


def test_files_folders_and_globs_are_named_from_the_folder_they_share(tmp_path):
    for name in ("x/a.jpg", "x/deep/a.png", "y/a.jpg", "y/b.v2.tif", "x/.hidden.png", "x/notes.txt"):
        picture(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no")
    x, y = str(tmp_path / "x"), str(tmp_path / "y")
    assert names([x], tmp_path) == ["a", "deep/a"]
    assert names([x, y], tmp_path) == ["x/a", "x/deep/a", "y/a", "y/b.v2"]
    assert names([f"{x}/a.jpg", f"{y}/a.jpg"], tmp_path) == ["x/a", "y/a"]
    assert names([f"{tmp_path}/*/*.jpg"], tmp_path) == ["x/a", "y/a"]
    assert names([f"{x}/**/*.png"], tmp_path) == ["deep/a"]
    assert names([x, f"{x}/a.jpg"], tmp_path) == ["a", "deep/a"]
    shared_folder, items, left_out = collect([f"{y}/a.jpg"], tmp_path)
    assert left_out == []
    assert (shared_folder, items[0].file) == (y, f"{y}/a.jpg")


def test_the_output_inside_the_input_is_left_out(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "out/masks/a.png")
    assert names([str(tmp_path)], tmp_path) == ["a"]


def test_two_files_of_one_name_are_refused(tmp_path):
    files = [picture(tmp_path / "a.jpg"), picture(tmp_path / "a.png")]
    for arguments in ([str(tmp_path)], files):
        with pytest.raises(ValueError, match=r"a.jpg and .*a.png would both be called a: rename one"):
            collect(arguments, tmp_path / "out")


def test_numpy_and_dicom_files_are_images_of_a_network_of_values_alone(tmp_path):
    folder = tmp_path / "frames"
    picture(folder / "a.png")
    for name in ("a.npy", "features.npz", "b.dcm"):
        (folder / name).write_bytes(b"values")
    _, items, left_out = collect([str(folder)], tmp_path / "out")
    assert [item.name for item in items] == ["a"]
    assert left_out == [f"{folder}/{name}" for name in ("a.npy", "b.dcm", "features.npz")]
    with pytest.raises(ValueError, match="would both be called a: rename one"):
        collect([str(folder)], tmp_path / "out", takes_values=True)
    (folder / "a.npy").unlink()
    _, items, left_out = collect([str(folder)], tmp_path / "out", takes_values=True)
    assert [item.name for item in items] == ["a", "b", "features"] and left_out == []
    picture(folder / "images/a.png"), picture(folder / "masks/a.png")
    (folder / "images/c.npy").write_bytes(b"values")
    assert not any("c.npy" in file for file in collect([str(folder)], tmp_path / "out").left_out)
    assert f"{folder}/images/c.npy" in collect([str(folder)], tmp_path / "out", takes_values=True).left_out


def test_a_folder_with_masks_gives_its_images_only(tmp_path):
    for index in range(2):
        picture(tmp_path / f"images/{index}.jpg")
        picture(tmp_path / f"masks/{index}.png")
    picture(tmp_path / "fold 2/images/8.jpg"), picture(tmp_path / "extra.jpg")
    (tmp_path / "list.txt").write_text("no image")
    _, items, left_out = collect([str(tmp_path)], tmp_path / "out")
    assert [item.name for item in items] == ["0", "1"]
    assert left_out == [f"{tmp_path}/extra.jpg", f"{tmp_path}/fold 2/images/8.jpg"]  # masks are no images left out
    assert items[0].read() == {"bytes": None, "path": str(tmp_path / "images/0.jpg")}


def test_a_coco_file_gives_its_images(tmp_path):
    picture(tmp_path / "images/0.jpg")
    images = [{"id": 1, "file_name": "0.jpg", "width": 8, "height": 6}]
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    items = collect([str(tmp_path / "a.json")], tmp_path / "out").items
    assert [(item.name, item.file) for item in items] == [("0", str(tmp_path / "images/0.jpg"))]


def test_a_folder_of_images_without_masks_is_walked(tmp_path):
    picture(tmp_path / "images/0.jpg")
    assert names([str(tmp_path)], tmp_path) == ["images/0"]


def test_zips_tables_and_phantoms(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    picture(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "a.jpg", "inner/a.jpg")
    assert names([str(tmp_path / "set.zip")], tmp_path) == ["inner/a"]
    rows = phantom_dataset(2, 0, 64)
    rows.select_columns(["name", "image"]).to_parquet(tmp_path / "table" / "rows.parquet")
    for data in (tmp_path / "table", tmp_path / "table" / "rows.parquet"):
        items = collect([str(data)], tmp_path / "out").items
        assert [item.name for item in items] == ["phantom-0-00000", "phantom-0-00001"]
        assert items[1].read()["bytes"] == rows[1]["image"]["bytes"]
    item_names = names(["phantoms?count=4&size=64&seed=0"], tmp_path)
    assert item_names[0].startswith("train/phantom-0-") and len(item_names) == 4 + 1 + 1


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    rows = phantom_dataset(2, 0, 64).select_columns(["image"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": rows}))
    data_set, items, _ = collect(["owner/set"], tmp_path / "out")
    assert data_set == "owner/set" and [item.name for item in items] == ["phantom-0-00000", "phantom-0-00001"]
    two_columns = rows.add_column("thumbnail", rows["image"]).cast_column("thumbnail", datasets.Image(decode=False))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": two_columns}))
    with pytest.raises(ValueError, match="2 columns may hold the images"):
        collect(["owner/set"], tmp_path / "out")


def test_a_video_and_a_folder_of_its_name_are_refused(tmp_path):
    video(tmp_path / "clip.mp4", frames=1)
    picture(tmp_path / "clip" / "000000.jpg")
    with pytest.raises(ValueError, match="may be called as a frame of"):
        collect([str(tmp_path)], tmp_path / "out")


def test_without_pyav_the_error_names_the_extra(tmp_path, monkeypatch):
    path = video(tmp_path / "clip.mp4", frames=1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'hub-unets\[video\]'"):
        collect([path], tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"), [("missing.jpg", "no such file"), ("*.png", "no file matches"), ("empty", "holds no image")]
)
def test_an_input_that_is_not_there(tmp_path, text, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        collect([str(tmp_path / text)], tmp_path / "out")


def test_a_changed_file_has_another_stamp(tmp_path):
    path = tmp_path / "a.png"
    stamps = set()
    for index in range(2):
        Image.fromarray(phantom(0, index, 64)[0]).save(path)
        stamps.add(collect([str(path)], tmp_path / "out").items[0].stamp)
    assert len(stamps) == 2


def test_less_usual_suffixes_links_and_what_is_left_out(tmp_path):
    folder = tmp_path / "set"
    for number, suffix in enumerate(("jfif", "jp2", "tga", "ppm", "avif", "JPE")):
        picture(folder / f"part {number}!" / f"{number}.{suffix}")
    picture(tmp_path / "elsewhere/linked.png"), picture(folder / "__odd/name.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    for name in ("notes.txt", "scan.pdf", ".hidden.png"):
        (folder / name).write_text("no")
    source = collect([str(folder)], tmp_path / "out")
    assert len(source.items) == 8 and {"link/linked", "__odd/name", "part 5!/5"} <= {
        item.name for item in source.items
    }
    assert all(read_image(item.read(), item.name).size == (8, 6) for item in source.items)
    assert source.left_out == [f"{folder}/{name}" for name in ("gone.png", "notes.txt", "pipe.png", "scan.pdf")]
    assert f"{folder}/__odd" in collect([f"{folder}/*"], tmp_path / "out").left_out
