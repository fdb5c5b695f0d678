"""The function in CVAT's own driver and command, and its shapes exported, corrected and trained on."""

import argparse
import json
import logging
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import cvat_sdk.auto_annotation as cvataa
import datasets
import numpy as np
import pytest
import torch
from cvat_cli._internal.commands_all import COMMANDS
from cvat_cli._internal.common import FunctionLoader, configure_common_arguments
from cvat_cli._internal.parsers import parse_function_parameter
from cvat_sdk import models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask
from PIL import Image
from scipy import ndimage

from hub_unets.hub_repos.annotate.cvat import RegionFunction, create
from hub_unets.hub_repos.annotate.regions import Annotator
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.data.reading import read_labels
from hub_unets.training.data.sources import load_source
from tests.training.foreign_models import save
from tests.variants import small_model

ROOT = Path(__file__).parents[3]


class Task:
    """What the driver asks of a server: a task's labels and frames; keeps what is sent back."""

    def __init__(self, images, names):
        self.labels = [
            models.Label(id=70 + number, name=name, color="#fff", attributes=[], type="any", sublabels=[])
            for number, name in enumerate(names)
        ]
        self.samples = [
            SimpleNamespace(
                frame_index=10 + index, frame_name=f"{index}.png", media=SimpleNamespace(load_image=lambda i=image: i)
            )
            for index, image in enumerate(images)
        ]
        self.logger, self.tasks = logging.getLogger(__name__), SimpleNamespace(api=self)

    def partial_update_annotations(self, action, task, patched_labeled_data_request):
        self.shapes = patched_labeled_data_request.shapes

    @property
    def label_names(self):
        return {label.id: label.name for label in self.labels}


@pytest.fixture
def annotate(monkeypatch):
    """A function (function, images, names of the task's labels, options) -> the Task after the SDK's driver ran."""

    def run(function, images, names=("polyp",), **options):
        task = Task(images, names)
        monkeypatch.setattr(driver, "TaskDataset", lambda client, *_, **__: client)
        cvataa.annotate_task(task, 1, function, **options)
        return task

    return run


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(phantom(7, index, 80)[0]) for index in range(3)]


def masks_of(annotator, image):
    """bool H x W of each region, with its score."""
    for region in annotator(image)[0]:
        x, y, width, height = region.box
        mask = np.zeros((image.height, image.width), bool)
        mask[y : y + height, x : x + width] = region.mask
        yield mask, region


@pytest.mark.parametrize("classes", [2, 3])
def test_masks_are_the_regions(annotate, checkpoint, three_class_checkpoint, images, classes):
    annotator = Annotator(str(checkpoint if classes == 2 else three_class_checkpoint))
    task = annotate(RegionFunction(annotator), images, ("polyp", "boundary")[: classes - 1])
    expected = [(index, *pair) for index, image in enumerate(images) for pair in masks_of(annotator, image)]
    assert len(task.shapes) == len(expected) > 3
    for shape, (index, mask, region) in zip(task.shapes, expected, strict=True):
        assert (shape.type.value, shape.frame, shape.source) == ("mask", 10 + index, "auto")
        assert task.label_names[shape.label_id] == annotator.labels[region.label]
        assert shape.score == pytest.approx(region.score)
        np.testing.assert_array_equal(decoded(shape, images[index]), mask)


def test_polygons_and_a_threshold_where_cvat_asks_for_them(annotate, checkpoint, images):
    function = create(str(checkpoint))
    plain = annotate(function, images)
    threshold = sorted(shape.score for shape in plain.shapes)[len(plain.shapes) // 2]
    task = annotate(function, images, conf_threshold=threshold, conv_mask_to_poly=True)
    assert {shape.type.value for shape in task.shapes} == {"polygon"}
    assert 0 < len(task.shapes) == sum(shape.score >= threshold for shape in plain.shapes) < len(plain.shapes)
    for shape in task.shapes:
        points = np.reshape(shape.points, (-1, 2))
        assert len(points) > 2 and points.min() >= 0 and (points <= images[shape.frame - 10].size).all()


def test_frames_of_sixteen_bits(annotate, tmp_path):
    model, processor = small_model(num_channels=1).eval(), UNetImageProcessor(num_channels=1, size=32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 56), np.uint16))
    with torch.no_grad():
        model.head.classifier.bias -= model(**processor(image)).logits.median()
    task = annotate(create(save(model, tmp_path, processor)), [image])
    mask = np.logical_or.reduce([decoded(shape, image) for shape in task.shapes])
    with torch.no_grad():
        outputs = model(**processor(image))
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[mask.shape])[0].numpy()
    np.testing.assert_array_equal(mask, expected)
    assert 0.1 < mask.mean() < 0.9


def test_labels_that_a_task_lacks(annotate, three_class_checkpoint, images):
    function = create(str(three_class_checkpoint))
    with pytest.raises(cvataa.BadFunctionError, match="label 'boundary' is not in dataset"):
        annotate(function, images)
    task = annotate(function, images, allow_unmatched_labels=True)
    assert {task.label_names[shape.label_id] for shape in task.shapes} == {"polyp"}


def test_the_command_line_finds_it(checkpoint, repository, modules_cache):
    for model, options in ((checkpoint, ()), (repository, ("trust_remote_code=bool:true",))):
        parameters = dict(map(parse_function_parameter, (f"model=str:{model}", *options)))
        function = FunctionLoader("hub_unets.hub_repos.annotate.cvat", None, parameters).load()
        assert [label.name for label in function.spec.labels] == ["polyp"]
        assert function.spec.labels[0].id == 1


def test_the_commands_of_the_page_are_cvat_clis(tmp_path):
    page = (ROOT / "hub_repos/README.md").read_text(encoding="utf-8").replace("\\\n", "")
    parser = argparse.ArgumentParser()
    configure_common_arguments(parser)
    COMMANDS.configure_parser(parser)
    lines = [shlex.split(line) for line in re.findall(r"cvat-cli (--server-host .*)", page)]
    create, annotate = (parser.parse_args([*line, *rest]) for line, rest in zip(lines, (["a.png"], []), strict=True))
    assert (create.sorting_method, create.labels) == ("predefined", [{"name": "polyp"}])
    assert (create.resource_type.name, create.resources) == ("LOCAL", ["a.png"])
    assert annotate.function_module == "hub_unets.hub_repos.annotate.cvat"
    assert annotate.function_parameters == {"model": "runs/unet_mobilenetv2"}


def decoded(shape, image):
    return decode_mask(shape.points, image_width=image.width, image_height=image.height)


def run_lengths(mask):
    """A mask as COCO's uncompressed run lengths."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges.tolist(), flat.size]).tolist()}


def coco_export(task, folder, images):
    """CVAT's export "COCO 1.0" of a task, unpacked: polygons, and masks as run lengths that are marked as crowds."""
    entries = []
    for number, shape in enumerate(task.shapes, start=1):
        if shape.type.value == "polygon":
            segmentation = [list(shape.points)]
        else:
            segmentation = run_lengths(decoded(shape, images[shape.frame - 10]))
        crowd = int(shape.type.value == "mask")
        entry = {"id": number, "image_id": shape.frame - 9, "category_id": 1, "segmentation": segmentation}
        entries.append({**entry, "iscrowd": crowd, "attributes": {"occluded": False}})
    (folder / "annotations").mkdir(parents=True)
    (folder / "images/default").mkdir(parents=True)
    for index, image in enumerate(images):
        image.save(folder / f"images/default/{index}.png")
    sizes = [dict(zip(("width", "height"), image.size, strict=True)) for image in images]
    listed = [{"id": 1 + index, "file_name": f"{index}.png", **size} for index, size in enumerate(sizes)]
    content = {"categories": [{"id": 1, "name": "polyp"}], "images": listed, "annotations": entries}
    (folder / "annotations/instances_default.json").write_text(json.dumps(content))


@pytest.mark.parametrize("polygons", [False, True])
def test_an_export_is_masks_to_train_on(annotate, checkpoint, images, tmp_path, monkeypatch, polygons):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    annotator = Annotator(str(checkpoint))
    task = annotate(RegionFunction(annotator), images, conv_mask_to_poly=polygons)
    removed = task.shapes.pop(0)  # by a person
    coco_export(task, tmp_path / "export", images)
    rows = load_source(shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "export"))["all"]
    assert [row["name"] for row in rows] == ["0", "1", "2"]
    for index, (row, image) in enumerate(zip(rows, images, strict=True)):
        masks = [mask for mask, _ in masks_of(annotator, image)]
        if index == removed.frame - 10:
            del masks[0]
        labels = read_labels(row["annotation"], row["name"]) == 1
        if polygons:
            expected = np.logical_or.reduce([ndimage.binary_fill_holes(mask) for mask in masks])
            assert (labels ^ expected).sum() < 0.02 * expected.sum()
        else:
            np.testing.assert_array_equal(labels, np.logical_or.reduce(masks))
