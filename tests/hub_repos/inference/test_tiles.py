"""Tiles cover the image and blend into the logits of the whole image for a network without context."""

import pytest
import torch
from PIL import Image

from hub_unets.hub_repos.inference.tiles import blend, hann, in_batches, logits_of, tile_boxes
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom


def test_the_last_tile_is_shifted_inside():
    boxes = tile_boxes(100, 40, 40, 0.25)
    assert boxes == [(0, 0, 40, 40), (30, 0, 70, 40), (60, 0, 100, 40)]
    assert tile_boxes(90, 40, 40, 0.25)[-1] == (50, 0, 90, 40)
    assert tile_boxes(41, 41, 40, 0) == [(0, 0, 40, 40), (1, 0, 41, 40), (0, 1, 40, 41), (1, 1, 41, 41)]


@pytest.mark.parametrize(("width", "height", "tile"), [(40, 30, 40), (40, 30, None), (7, 9, 50)])
def test_one_tile_holds_an_image_that_fits(width, height, tile):
    assert tile_boxes(width, height, tile, 0.5) == [(0, 0, width, height)]


@pytest.mark.parametrize("overlap", [0, 0.3, 0.9])
def test_every_pixel_is_covered(overlap):
    coverage = torch.zeros(83, 131)
    for left, top, right, bottom in tile_boxes(131, 83, 32, overlap):
        assert (right - left, bottom - top) == (32, 32)
        coverage[top:bottom, left:right] += 1
    assert coverage.min() >= 1


def test_the_weight_is_positive_symmetric_and_falls_to_the_border():
    weight = hann(4, 6)
    assert weight.shape == (4, 6) and weight.min() > 0
    torch.testing.assert_close(weight, weight.flip(0, 1))
    torch.testing.assert_close(weight[1, 1:3], torch.tensor([0.8535534 * 0.5, 0.8535534 * 0.9330127]))


def test_the_blend_is_the_weighted_mean():
    left_tile, right_tile = torch.full((1, 2, 2, 4), 1.0), torch.full((1, 2, 2, 4), 3.0)
    blended = blend([((0, 0, 4, 2), left_tile), ((2, 0, 6, 2), right_tile)], 2, 6)
    inner, outer = 0.5 - 0.5 * torch.cos(torch.pi * torch.tensor([1.25, 0.25]))  # Hann of 4: pixels 2 and 3, 0 and 1
    assert blended.shape == (1, 2, 2, 6)
    assert inner > outer
    torch.testing.assert_close(blended[0, 0, 0, [0, 1, 4, 5]], torch.tensor([1.0, 1, 3, 3]))
    torch.testing.assert_close(blended[0, 0, 0, 2] + blended[0, 0, 0, 3], torch.tensor(4.0))
    torch.testing.assert_close(blended[0, 1, 1, 2], (0.8535534 * 1 + 0.1464466 * 3) / torch.tensor(1.0))


def test_tiles_of_a_pixelwise_network_blend_into_its_logits():
    image = Image.fromarray(phantom(0, 0, 128)[0])
    processor = UNetImageProcessor(do_resize=False)
    sizes = []

    def forward(images):  # logits of a network without context
        sizes.append(len(images))
        return processor(images)["pixel_values"].sum(dim=1, keepdim=True)

    (tiled,) = logits_of(forward, [image], tile=64, overlap=0.5, batch_size=4)
    torch.testing.assert_close(tiled, forward([image]), atol=1e-4, rtol=1e-4)
    assert max(sizes) == 4 and len(sizes) > 2


def test_small_images_stay_in_one_batch_unchanged():
    images = [Image.fromarray(phantom(0, index, 64)[0]) for index in range(3)]
    processor, sizes = UNetImageProcessor(size=32), []

    def forward(batch):
        sizes.append(len(batch))
        return processor(batch)["pixel_values"]

    results = list(logits_of(forward, images, tile=200, batch_size=2))
    assert sizes == [2, 1]
    for result, image in zip(results, images, strict=True):
        assert torch.equal(result, processor(image)["pixel_values"])


def test_batches():
    assert list(in_batches(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_batches([], 2)) == []
