"""A model's regions as a person corrects them: those of the mask, and outlines that enclose them."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as api
from scipy import ndimage

from hub_unets.hub_repos.annotate.regions import Annotator, Region, _border, has_hole, outline
from hub_unets.modeling.regions import regions_of
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.errors import UserError
from tests.training.foreign_models import make, save

RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)


def region(mask):
    """The only Region of a bool mask H x W."""
    x, y, width, height = box = tuple(regions_of(mask).boxes()[0].tolist())
    return Region(1, 0.5, box, mask[y : y + height, x : x + width])


def inside(polygon, shape):
    """The pixels of a polygon, points x 2, bool H x W, as COCO's own code draws it."""
    return api.decode(api.frPyObjects([polygon.ravel().astype(float).tolist()], *shape))[..., 0].astype(bool)


def random_masks(count):
    """Every connected region of smooth noise, ragged to round, from one pixel to most of the image."""
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = ndimage.gaussian_filter(rng.normal(size=rng.integers(3, 60, 2)), number % 4)
        ids, regions = ndimage.label(noise > 0, np.ones((3, 3)))
        yield from (ids == index for index in range(1, regions + 1))


def test_the_border_encloses_the_region_exactly():
    masks = list(random_masks(40))
    assert len(masks) > 100 and min(mask.sum() for mask in masks) == 1
    for mask in masks:
        filled = ndimage.binary_fill_holes(mask)
        np.testing.assert_array_equal(inside(_border(region(mask)), mask.shape), filled)
        assert has_hole(region(mask)) == (filled.sum() > mask.sum())


def test_an_outline_has_few_points_and_keeps_the_region():
    rows, columns = np.mgrid[:400, :500]
    disc = (rows - 200) ** 2 + (columns - 250) ** 2 < 150**2
    assert len(outline(region(disc))) < 40 < 1000 < len(_border(region(disc)))
    for mask in (disc, *random_masks(12)):
        points, filled = outline(region(mask)), ndimage.binary_fill_holes(mask)
        wrong = inside(points, mask.shape) ^ filled
        assert len(points) > 2 and wrong.sum() <= 0.03 * filled.sum()


@pytest.mark.parametrize("shape", ["straight", "steep", "bent"])
def test_a_thin_region_stays_a_region(shape):
    mask = np.zeros((400, 400), bool)
    along = np.arange(400)
    if shape == "straight":
        mask[200] = True
    elif shape == "steep":
        mask[along, along // 2] = True
    else:
        mask[along, np.abs(along - 200)] = True
    points = outline(region(mask))
    assert 2 < len(points) <= 1000 and abs(cv2.contourArea(points.astype(np.float32)) - 400) <= 40


@pytest.mark.parametrize(
    ("mask", "points"),
    [
        (np.pad(np.ones((1, 1), bool), 2), {(2, 2), (3, 2), (3, 3), (2, 3)}),
        (np.ones((20, 30), bool), {(0, 0), (30, 0), (30, 20), (0, 20)}),
        (np.pad(RING, ((4, 0), (0, 5))), {(0, 4), (3, 4), (3, 7), (0, 7)}),
    ],
)
def test_an_outline_lies_on_the_edges_of_the_pixels(mask, points):
    assert {tuple(point) for point in outline(region(mask)).tolist()} == points


def test_the_regions_are_the_masks(checkpoint, three_class_checkpoint):
    picture = Image.fromarray(phantom(7, 0, 80)[0])
    for name in (checkpoint, three_class_checkpoint):
        annotator = Annotator(str(name))
        regions, uncertainty = annotator(picture)
        mask = np.zeros((picture.height, picture.width), np.int64)
        for label, score, (x, y, width, height), pixels in regions:
            assert pixels.shape == (height, width) and 0 < score < 1 and label in annotator.labels
            mask[y : y + height, x : x + width][pixels] = label
        processor = annotator.processor
        with torch.inference_mode():
            outputs = annotator.model(**processor(picture))
        expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[mask.shape])[0].numpy()
        np.testing.assert_array_equal(mask, expected)
        assert expected.any() and 0 < uncertainty <= 1
        scores = sorted(region.score for region in regions)
        kept, _ = annotator(picture, threshold=scores[-1])
        assert [region.score for region in kept] == [scores[-1]]


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="annotators take runs and repositories of hub-unets"):
        model, processor = make("segformer", "background", "polyp")
        Annotator(save(model, tmp_path / "other", processor))
