"""Whatever a person names becomes items whose names never clash."""

import json
import sys
import zipfile

import av
import datasets
import numpy as np
import pytest
from PIL import Image

from hub_unets.hub_repos.inference.inputs import Video, collect
from hub_unets.training.data.phantoms import phantom, phantom_dataset
from hub_unets.training.data.reading import read_image


def picture(path, colour=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 40, 40)).save(path)
    return str(path)


def video(path, frames=5, size=64):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = size
        for index in range(frames):
            image = Image.new("RGB", (size, size), (40 * index, 40, 40))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return str(path)


def names(inputs, tmp_path, every=1):
    return [item.name for one in collect(inputs, tmp_path / "out", every)[1] for item in one.items()]


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
    where, items = collect([f"{y}/a.jpg"], tmp_path)
    assert (where, items[0].file) == (y, f"{y}/a.jpg")


def test_the_output_inside_the_input_is_left_out(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "out/masks/a.png")
    assert names([str(tmp_path)], tmp_path) == ["a"]


def test_two_files_of_one_name_are_refused(tmp_path):
    files = [picture(tmp_path / "a.jpg"), picture(tmp_path / "a.png")]
    for inputs in ([str(tmp_path)], files):
        with pytest.raises(ValueError, match=r"a.jpg and .*a.png would both be called a: rename one"):
            collect(inputs, tmp_path / "out")


def test_a_folder_with_masks_gives_its_images_only(tmp_path):
    for index in range(2):
        picture(tmp_path / f"images/{index}.jpg")
        picture(tmp_path / f"masks/{index}.png")
    _, items = collect([str(tmp_path)], tmp_path / "out")
    assert [item.name for item in items] == ["0", "1"]
    assert items[0].read() == {"bytes": None, "path": str(tmp_path / "images/0.jpg")}


def test_a_coco_file_gives_its_images(tmp_path):
    picture(tmp_path / "images/0.jpg")
    images = [{"id": 1, "file_name": "0.jpg", "width": 8, "height": 6}]
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    _, items = collect([str(tmp_path / "a.json")], tmp_path / "out")
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
        _, items = collect([str(data)], tmp_path / "out")
        assert [item.name for item in items] == ["phantom-0-00000", "phantom-0-00001"]
        assert items[1].read()["bytes"] == rows[1]["image"]["bytes"]
    found = names(["phantoms?count=4&size=64&seed=0"], tmp_path)
    assert found[0].startswith("train/phantom-0-") and len(found) == 4 + 1 + 1


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    rows = phantom_dataset(2, 0, 64).select_columns(["image"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": rows}))
    where, items = collect(["owner/set"], tmp_path / "out")
    assert where == "owner/set" and [item.name for item in items] == ["phantom-0-00000", "phantom-0-00001"]
    two = rows.add_column("thumbnail", rows["image"]).cast_column("thumbnail", datasets.Image(decode=False))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": two}))
    with pytest.raises(ValueError, match="2 columns may hold the images"):
        collect(["owner/set"], tmp_path / "out")


def test_the_frames_of_a_video_are_named_by_their_index(tmp_path):
    path = video(tmp_path / "clip.mp4")
    assert names([path], tmp_path) == [f"clip/{index:06d}" for index in range(5)]
    assert names([path], tmp_path, every=2) == ["clip/000000", "clip/000002", "clip/000004"]
    (clip,) = collect([path], tmp_path / "out", 2)[1]
    assert clip.count() == 3
    reds = [np.asarray(read_image(item.read(), item.name))[..., 0].mean() for item in clip.items()]
    np.testing.assert_allclose(reds, [0, 80, 160], atol=12)


def test_a_broken_video_gives_what_can_be_read_and_a_reason(tmp_path):
    (tmp_path / "zero.avi").write_bytes(b"")
    items = list(Video("zero", str(tmp_path / "zero.avi"), "", 1).items())
    with pytest.raises(ValueError, match="zero.avi: frame 0 can't be read"):
        items[0].read()
    assert len(items) == 1 and Video("zero", str(tmp_path / "zero.avi"), "", 1).count() == 1


def test_a_video_and_a_folder_of_its_name_are_refused(tmp_path):
    video(tmp_path / "clip.mp4", 1)
    picture(tmp_path / "clip" / "000000.jpg")
    with pytest.raises(ValueError, match="may be called as a frame of"):
        collect([str(tmp_path)], tmp_path / "out")


def test_without_pyav_the_error_names_the_extra(tmp_path, monkeypatch):
    path = video(tmp_path / "clip.mp4", 1)
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
        stamps.add(collect([str(path)], tmp_path / "out")[1][0].stamp)
    assert len(stamps) == 2
