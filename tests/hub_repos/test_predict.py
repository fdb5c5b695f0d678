"""The command on small frames: what it writes is what the processor says, whole, resumable, and readable by others."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from hub_unets.hub_repos import predict as command
from hub_unets.hub_repos.inference import documents, predictions
from hub_unets.hub_repos.inference.documents import write_documents
from hub_unets.hub_repos.inference.predictions import Predictions, uncertainty
from hub_unets.hub_repos.inference.records import Records
from hub_unets.hub_repos.predict import main
from hub_unets.modeling.image_processing_unet import upsample
from hub_unets.modeling.regions import connected_components
from hub_unets.training.data.coco import mask_api
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.errors import run_command
from hub_unets.training.measure.flips import predict_with_flips
from hub_unets.training.measure.models import load_model
from hub_unets.training.records.pictures import outlined

ROOT = Path(__file__).parents[2]
SIZES = (64, 80, 96)


@pytest.fixture
def frames(tmp_path):
    """A folder with a.png, b.png and sub/a.png of different sizes."""
    folder = tmp_path / "frames"
    (folder / "sub").mkdir(parents=True)
    for name, index, size in zip(("a", "b", "sub/a"), range(3), SIZES, strict=True):
        Image.fromarray(phantom(0, index, size)[0]).save(folder / f"{name}.png")
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """Every file, by its path, but the records, which hold times."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".work" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("classes", [2, 3])
def test_masks_and_entries_are_the_processors(checkpoint, three_class_checkpoint, frames, tmp_path, classes):
    name = checkpoint if classes == 2 else three_class_checkpoint
    assert run(name, frames, tmp_path / "out", "--batch_size", 1) == 0
    model, processor = load_model(name)
    coco = COCO(tmp_path / "out" / "annotations.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.png", "b.png", "sub/a.png"]
    assert coco.getCatIds() == list(range(1, classes))
    for image in coco.dataset["images"]:
        frame = Image.open(frames / image["file_name"])
        with torch.inference_mode():
            logits = model(**processor(frame)).logits
        sizes = [(frame.height, frame.width)]
        expected = processor.post_process_semantic_segmentation(logits, target_sizes=sizes)[0].numpy()
        segments = processor.post_process_instance_segmentation(logits, target_sizes=sizes)[0]
        stored = Image.open(tmp_path / "out" / "masks" / image["file_name"])
        assert stored.mode == ("L" if classes == 2 else "P") and expected.mean() > 0
        np.testing.assert_array_equal(np.asarray(stored), expected * (255 if classes == 2 else 1))
        assert Image.open(tmp_path / "out/overlays" / image["file_name"].replace("png", "jpg")).size == frame.size
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(segments["segments_info"]) > 0
        for annotation, info in zip(annotations, segments["segments_info"], strict=True):
            inside = segments["segmentation"].numpy() == info["id"]
            np.testing.assert_array_equal(coco.annToMask(annotation), inside)
            rows, columns = np.nonzero(inside)
            assert annotation["area"] == inside.sum() and annotation["category_id"] == info["label_id"]
            width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
            assert annotation["bbox"] == [columns.min(), rows.min(), width, height]
            assert annotation["score"] == pytest.approx(info["score"], abs=1e-6)
    results = coco.loadRes(coco.dataset["annotations"])
    assert len(results.getAnnIds()) == len(coco.getAnnIds())


def test_flips_give_the_mean_mask_and_a_map_of_where_they_disagree(checkpoint, frames, tmp_path):
    run(checkpoint, frames, tmp_path / "out", "--flips", "true")
    model, processor = load_model(checkpoint)
    for name in ("a", "b", "sub/a"):
        frame = Image.open(frames / f"{name}.png")
        prediction, sizes = predict_with_flips(model, processor(frame)["pixel_values"]), [(frame.height, frame.width)]
        mask = processor.post_process_semantic_segmentation(prediction.logits, target_sizes=sizes)[0].numpy()
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/masks/{name}.png")), mask * 255)
        picture = np.asarray(Image.open(tmp_path / f"out/uncertainty/{name}.png"))
        expected = 510 * upsample(prediction.uncertainty[:, None], sizes)[0][0].numpy()
        assert picture.shape == mask.shape and np.abs(picture - expected).max() <= 0.501 and picture.max() > 0
    with pytest.raises(ValueError, match="flips"):
        run(checkpoint, frames, tmp_path / "out")
    run(checkpoint, frames, tmp_path / "tiled", "--flips", "true", "--tile", "48")
    assert Image.open(tmp_path / "tiled/uncertainty/b.png").size == Image.open(frames / "b.png").size


def test_the_tables_hold_the_polyps_and_the_most_uncertain_image_first(checkpoint, frames, tmp_path):
    out = tmp_path / "out"
    run(checkpoint, frames, out)
    sorted_by_name = table(out / "images.csv")
    assert [row["image"] for row in sorted_by_name] == ["a", "b", "sub/a"] and not (out / "failed.csv").exists()
    run(checkpoint, frames, out, "--sort", "uncertain")
    images, polyps = table(out / "images.csv"), table(out / "polyps.csv")
    values = [float(row["uncertainty"]) for row in images]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] >= 0
    assert sorted(sorted_by_name, key=lambda row: -float(row["uncertainty"])) == images
    coco_images = json.loads((out / "annotations.json").read_text())["images"]
    assert [image["file_name"].removesuffix(".png") for image in coco_images] == [row["image"] for row in images]
    assert (out / "files.txt").read_text().splitlines() == [str(frames / f"{row['image']}.png") for row in images]
    for row in images:
        image_polyps = [polyp for polyp in polyps if polyp["image"] == row["image"]]
        assert [int(polyp["polyp"]) for polyp in image_polyps] == list(range(1, int(row["polyps"]) + 1))
        pixels = sum(int(polyp["area_pixels"]) for polyp in image_polyps)
        assert pixels == np.count_nonzero(np.asarray(Image.open(out / "masks" / f"{row['image']}.png")))
        assert float(row["area_percent"]) == pytest.approx(
            100 * pixels / (int(row["width"]) * int(row["height"])), abs=1e-3
        )
        assert {polyp["label"] for polyp in image_polyps} == {"polyp"}


def test_uncertainty_is_the_mean_entropy_of_the_pixels_that_may_be_a_polyp():
    logits = torch.tensor([[[0.0, -10.0], [-10.0, 0.0]]])
    assert uncertainty(logits) == pytest.approx(1.0)
    assert uncertainty(torch.full((1, 2, 2), -10.0)) == 0.0
    three_logits = torch.tensor([0.0, 0.0, -50.0])[:, None, None]  # two of three classes, evenly
    assert uncertainty(three_logits) == pytest.approx(np.log(2) / np.log(3))
    assert uncertainty(torch.tensor([[[2.0]]])) == pytest.approx(0.5270653, abs=1e-6)  # p = .8807971, in bits


def test_broken_files_are_listed_with_their_reason_and_the_rest_is_predicted(checkpoint, frames, tmp_path, capsys):
    (frames / "zero.jpg").write_bytes(b"")
    (frames / "text.png").write_text("no image")
    (frames / "cut.png").write_bytes((frames / "b.png").read_bytes()[:2000])
    (frames / "notes.txt").write_text("left out")
    out = tmp_path / "out"
    assert run(checkpoint, frames, out, "--batch_size", 2) == 1
    assert {path.name for path in (out / "masks").rglob("*.png")} == {"a.png", "b.png"}
    assert [Path(row["file"]).name for row in table(out / "left_out.csv")] == ["notes.txt"]
    failed = table(out / "failed.csv")
    assert [Path(row["file"]).name for row in failed] == ["cut.png", "text.png", "zero.jpg"]
    assert "truncated" in failed[0]["reason"] and "format" in failed[1]["reason"]
    assert capsys.readouterr().out.count("failed: ") == 3
    for name in ("zero.jpg", "text.png", "cut.png"):
        (frames / name).unlink()
    assert run(checkpoint, frames, out) == 0 and not (out / "failed.csv").exists()


def test_the_exit_code_is_1_where_a_file_could_not_be_read(checkpoint, frames, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict", str(checkpoint), str(frames), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        run_command(command.main)
    assert stop.value.code == 0
    (frames / "zero.jpg").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        run_command(command.main)
    assert stop.value.code == 1


def killed_at(moment, arguments):
    """Run the command in a process that kills itself when `moment` (owner, name, number of the call) comes."""
    pid = os.fork()
    if not pid:
        owner, name, number = moment
        original, calls = getattr(owner, name), []

        def counted(*call_arguments, **options):
            calls.append(1)
            if len(calls) == number:
                for file in (argument for argument in call_arguments if isinstance(argument, io.IOBase)):
                    file.write(b"half")
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*call_arguments, **options)

        setattr(owner, name, counted)
        try:
            run(*arguments)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    "moment",
    [
        (Predictions, "_save", 3),
        (Image.Image, "save", 2),
        (Path, "replace", 3),
        (predictions, "_record", 2),
        (documents, "_image_row", 2),
    ],
)
def test_a_killed_command_resumes_and_writes_the_same_files(checkpoint, frames, tmp_path, moment, monkeypatch):
    reference, out = tmp_path / "whole", tmp_path / "out"
    options = ("--batch_size", 1)
    run(checkpoint, frames, reference, *options)
    assert killed_at(moment, (checkpoint, frames, out, *options)) == -signal.SIGKILL
    for picture in [*out.glob("masks/**/*.*"), *out.glob("overlays/**/*.*")]:
        Image.open(picture).load()
    records = next((out / ".work").glob("records-*.jsonl"))
    with records.open("a") as file:
        file.write('{"name": "b", "half')
    completed = len(Records(out))
    written = []
    write = Predictions.write
    monkeypatch.setattr(
        Predictions, "write", lambda self, item, *arguments: written.append(item) or write(self, item, *arguments)
    )
    assert run(checkpoint, frames, out, *options) == 0
    assert len(written) == 3 - completed
    assert contents(out) == contents(reference)


def test_repeating_predicts_only_what_is_new_or_changed(checkpoint, frames, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(checkpoint, frames, out)
    Image.fromarray(phantom(0, 7, 64)[0]).save(frames / "c.png")
    Image.fromarray(phantom(0, 8, 64)[0]).save(frames / "a.png")
    written = []
    write = Predictions.write
    monkeypatch.setattr(
        Predictions, "write", lambda self, item, *arguments: written.append(item.name) or write(self, item, *arguments)
    )
    run(checkpoint, frames, out)
    assert written == ["a", "c"]
    assert [row["image"] for row in table(out / "images.csv")] == ["a", "b", "c", "sub/a"]


def test_the_lists_follow_the_current_inputs(checkpoint, frames, tmp_path, capsys):
    out = tmp_path / "out"
    run(checkpoint, frames, out)
    (frames / "a.png").unlink()
    (frames / "b.png").write_bytes(b"broken since")
    assert run(checkpoint, frames, out) == 1
    assert "2 earlier predictions are of inputs that are gone, changed" in capsys.readouterr().out
    assert [row["image"] for row in table(out / "images.csv")] == ["sub/a"]
    assert {row["image"] for row in table(out / "polyps.csv")} == {"sub/a"}
    coco = json.loads((out / "annotations.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["sub/a.png"]
    assert {annotation["image_id"] for annotation in coco["annotations"]} == {1}


def test_files_left_out_are_counted_and_named(checkpoint, frames, tmp_path, capsys):
    for name in ("notes.txt", "scan.pdf", "sub/x.docx", "sub/y.docx"):
        (frames / name).write_text("no image")
    assert run(checkpoint, frames, tmp_path / "out") == 0
    output = capsys.readouterr().out
    assert "4 left out, neither images nor videos (notes.txt, scan.pdf, x.docx and 1 more)" in output
    assert [Path(row["file"]).name for row in table(tmp_path / "out/left_out.csv")][-1] == "y.docx"
    for name in ("notes.txt", "scan.pdf", "sub/x.docx", "sub/y.docx"):
        (frames / name).unlink()
    run(checkpoint, frames, tmp_path / "out")
    assert not (tmp_path / "out/left_out.csv").exists() and "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_saved_in_half_precision_predicts(checkpoint, frames, tmp_path, dtype):
    model, processor = load_model(checkpoint)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    if load_model(tmp_path / "half")[0].dtype == torch.float32:
        pytest.skip("this version of transformers loads float32")
    for options in ((), ("--flips", "true")):
        assert run(tmp_path / "half", frames, tmp_path / f"out{len(options)}", *options) == 0
        assert len(table(tmp_path / f"out{len(options)}/images.csv")) == 3
    run(checkpoint, frames, tmp_path / "whole")
    full_mask, half_mask = (np.asarray(Image.open(tmp_path / f"{name}/masks/b.png")) for name in ("whole", "out0"))
    assert (full_mask == half_mask).mean() > 0.97


def test_other_settings_in_the_same_folder_are_refused(checkpoint, three_class_checkpoint, frames, tmp_path):
    out = tmp_path / "out"
    run(checkpoint, frames, out)
    for model, inputs, options in (
        (checkpoint, frames, ("--threshold", 0.3)),
        (checkpoint, frames, ("--tile", 64)),
        (three_class_checkpoint, frames, ()),
        (checkpoint, frames / "sub", ()),
    ):
        with pytest.raises(ValueError, match="OUTPUT .* holds a run with .*choose another OUTPUT, or repeat"):
            run(model, inputs, out, *options)
    with pytest.raises(ValueError, match="is not empty and not an earlier OUTPUT of this command"):
        run(checkpoint, out, frames)


def test_the_threshold_moves_the_mask(checkpoint, frames, tmp_path):
    for threshold in (0.45, 0.55):
        run(checkpoint, frames / "a.png", tmp_path / str(threshold), "--threshold", threshold)
    low_mask, high_mask = (np.asarray(Image.open(tmp_path / f"{name}/masks/a.png")) > 0 for name in ("0.45", "0.55"))
    assert (low_mask >= high_mask).all() and low_mask.sum() > high_mask.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", 1), "lies between 0 and 1"),
        (("--overlap", 1), "overlap must lie between 0 and 0.9"),
        (("--batch_size", 0), "batch_size"),
    ],
)
def test_senseless_options_are_refused(checkpoint, frames, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(checkpoint, frames, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_threshold_is_refused_where_there_are_several_classes(three_class_checkpoint, frames, tmp_path):
    with pytest.raises(ValueError, match="binary head"):
        run(three_class_checkpoint, frames, tmp_path / "out", "--threshold", 0.4)


def test_without_pycocotools_the_error_names_the_extra(checkpoint, frames, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install 'hub-unets\[coco\]'"):
        run(checkpoint, frames, tmp_path / "out")


def test_one_tile_that_covers_the_image_changes_nothing(checkpoint, frames, tmp_path):
    for name, options in (("whole", ()), ("tiled", ("--tile", 200))):
        run(checkpoint, frames, tmp_path / name, *options)
    expected, tiled = contents(tmp_path / "whole"), contents(tmp_path / "tiled")
    assert {name for name in expected if expected[name] != tiled[name]} == {"settings.json"}


@pytest.mark.long
def test_accelerate_launch_of_two_processes_writes_what_one_does(checkpoint, frames, tmp_path):
    (frames / "zero.jpg").write_bytes(b"")
    options = ("--batch_size", "1")
    run(checkpoint, frames, tmp_path / "one", *options)
    launcher = (sys.executable, "-m", "accelerate.commands.launch")
    spread = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "hub_repos.predict")
    process = subprocess.run(
        [*launcher, *spread, str(checkpoint), str(frames), str(tmp_path / "two"), *options],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 1 and process.stdout.count("failed: ") == 1, process.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    records = sorted((tmp_path / "two" / ".work").glob("records-*"))
    assert [len(file.read_text().splitlines()) for file in records] == [2, 1]


def test_an_overlay_takes_little_more_memory_than_its_image():
    image, mask = np.full((1000, 4000, 3), 90, np.uint8), np.zeros((1000, 4000), np.uint8)
    mask[100:900, 200:3000] = 1
    mask[950:, 3500:] = 2
    tracemalloc.start()
    picture = outlined(image, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.shape == image.shape and peak < 3.5 * image.nbytes  # 11 with arrays of the whole image as int64


def test_run_lengths_are_those_of_pycocotools(tmp_path):
    random = np.random.default_rng(0)
    for density in (0.02, 0.3, 0.9, 1.0):
        ids, count = connected_components(random.random((23, 31)) < density)
        for region in range(1, count + 1):
            rows, columns = np.nonzero(ids == region)
            box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            encoded = predictions._run_lengths(ids, {"id": region, "bbox": box})
            assert encoded == mask_api().encode(np.asfortranarray(ids == region, np.uint8))["counts"].decode()


def test_an_image_without_a_polyp_has_an_empty_mask_and_no_row(tmp_path):
    from hub_unets.hub_repos.inference.inputs import Item

    image = Image.new("RGB", (5, 4))
    empty = predictions.Prediction(np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.int32), [], 0.0)
    Predictions(tmp_path, {0: "background", 1: "polyp"}).write(
        Item("x", "x.png", "", None), {"bytes": None, "path": "x.png"}, image, empty
    )
    write_documents(tmp_path, {0: "background", 1: "polyp"}, [])
    assert table(tmp_path / "polyps.csv") == [] and table(tmp_path / "images.csv")[0]["polyps"] == "0"
    assert not np.asarray(Image.open(tmp_path / "masks/x.png")).any()
    assert COCO(tmp_path / "annotations.json").getAnnIds() == []
