"""Images become the right `pixel_values`, and logits become masks and polyps at the original size."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.layers import center_crop
from tests.variants import small_model

COLOUR = (np.arange(2 * 5 * 3) * 8).reshape(2, 5, 3).astype(np.uint8)  # height 2, width 5
GREY = COLOUR[..., 0]
IDENTITY = {"do_resize": False, "do_rescale": False, "do_normalize": False}


def logit(probability):
    return math.log(probability / (1 - probability))


# preprocessing


def test_without_any_step_the_pixels_are_those_of_the_image():
    pixel_values = UNetImageProcessor(**IDENTITY)(COLOUR)["pixel_values"]
    assert pixel_values.dtype == torch.float32
    assert torch.equal(pixel_values, torch.from_numpy(COLOUR).float().permute(2, 0, 1)[None])


def test_a_constant_image_by_hand():
    pixel_values = UNetImageProcessor(size=8)(Image.new("RGB", (20, 12), (51, 102, 255)))["pixel_values"]
    assert pixel_values.shape == (1, 3, 8, 8)
    expected = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]
    torch.testing.assert_close(pixel_values, torch.tensor(expected)[None, :, None, None].expand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"do_normalize": False}, 0.2),
        ({"do_normalize": False, "do_rescale": False}, 51.0),
        ({"image_mean": (0.1,) * 3, "image_std": (0.5,) * 3}, 0.2),
        ({"do_normalize": False, "rescale_factor": 1 / 102}, 0.5),
    ],
)
def test_steps_by_hand(options, value):
    image = np.full((4, 4, 3), 51, np.uint8)
    for pixel_values in (
        UNetImageProcessor(size=4, **options)(image)["pixel_values"],
        UNetImageProcessor(size=4)(image, **options)["pixel_values"],
    ):
        torch.testing.assert_close(pixel_values, torch.full((1, 3, 4, 4), value))


@pytest.mark.parametrize(
    ("size", "shape"), [(16, (16, 16)), ({"height": 8, "width": 24}, (8, 24)), ((8, 24), (8, 24)), (None, (256, 256))]
)
def test_sizes(size, shape):
    image = Image.new("RGB", (30, 20))
    assert UNetImageProcessor(size=size)(image)["pixel_values"].shape == (1, 3, *shape)
    assert UNetImageProcessor(size=64)(image, size=size or 256)["pixel_values"].shape == (1, 3, *shape)


def test_halving_averages_squares():
    image = np.zeros((4, 4), np.uint8)
    image[:2, :2] = 200
    options = {"do_rescale": False, "do_normalize": False, "size": 2}
    boxed = UNetImageProcessor(resample=Image.Resampling.BOX, **options)(image)["pixel_values"]
    assert boxed[0, 0].tolist() == [[200.0, 0.0], [0.0, 0.0]]
    bilinear = UNetImageProcessor(**options)(image)["pixel_values"][0, 0]
    assert bilinear[0, 0] > bilinear[0, 1] > bilinear[1, 1] > 0  # antialiased: the filter reaches beyond the square


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([COLOUR, Image.fromarray(GREY), torch.from_numpy(COLOUR)], 3),
        (np.stack([COLOUR] * 4), 4),
        (torch.zeros(2, 3, 6, 7), 2),
        ((COLOUR, COLOUR), 2),
        (COLOUR, 1),
    ],
)
def test_batches(images, count):
    assert UNetImageProcessor(size=8)(images)["pixel_values"].shape == (count, 3, 8, 8)


def test_numpy_output():
    pixel_values = UNetImageProcessor(size=8)(COLOUR, return_tensors="np")["pixel_values"]
    assert isinstance(pixel_values, np.ndarray)
    assert pixel_values.dtype == np.float32


def test_sizes_that_differ_need_resizing():
    images = [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]
    with pytest.raises(ValueError, match="do_resize=False needs images of one size"):
        UNetImageProcessor(do_resize=False)(images)


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="Unknown option 'sise'; this image processor has .*size"):
        UNetImageProcessor()(COLOUR, sise=8)


def test_options_of_a_call_do_not_change_the_processor():
    processor = UNetImageProcessor(size=8)
    before = processor.to_dict()
    processor(COLOUR, size=4, do_normalize=False, mirror_margin=1)
    assert processor.to_dict() == before


@pytest.mark.parametrize("form", [np.asarray, Image.fromarray, torch.from_numpy])
def test_masks_are_enlarged_without_new_values(form):
    mask = np.array([[0, 1], [255, 3]], np.uint8)
    batch = UNetImageProcessor(size=4)([COLOUR[:, :2]] * 2, segmentation_maps=[form(mask), form(mask)])
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].shape == (2, 4, 4)
    assert batch["labels"][1].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [255, 255, 3, 3], [255, 255, 3, 3]]


@pytest.mark.parametrize("do_resize", [True, False])
def test_ignored_pixels_of_masks_stay_ignored(do_resize):
    mask = np.full((4, 4), -100)
    batch = UNetImageProcessor(size=4, do_resize=do_resize)(np.zeros((4, 4)), segmentation_maps=mask)
    assert batch["labels"].unique().tolist() == [-100]


def test_a_saved_processor_comes_back_equal(tmp_path):
    processor = UNetImageProcessor(
        size={"height": 12, "width": 20},
        image_mean=(0.1, 0.2, 0.3),
        mirror_margin=3,
        mask_threshold=0.3,
        score_threshold=0.7,
        resample=3,
    )
    processor.save_pretrained(tmp_path)
    loaded = UNetImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.mask_threshold, loaded.score_threshold, loaded.size) == (0.3, 0.7, {"height": 12, "width": 20})
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert torch.equal(loaded(image)["pixel_values"], processor(image)["pixel_values"])


# the mirrored border of unpadded networks, figure 2 of the 2015 paper


def test_borders_mirror():
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    plain = UNetImageProcessor(size=388)(image)["pixel_values"]
    pixels = UNetImageProcessor(size=388, mirror_margin=92)(image)["pixel_values"]
    assert pixels.shape == (1, 3, 572, 572)
    assert torch.equal(pixels[..., 92:480, 92:480], plain)
    for away in (1, 50, 92):
        assert torch.equal(pixels[..., 92 - away, :], pixels[..., 92 + away, :])
        assert torch.equal(pixels[..., :, 92 - away], pixels[..., :, 92 + away])
        assert torch.equal(pixels[..., 479 + away, :], pixels[..., 479 - away, :])
        assert torch.equal(pixels[..., :, 479 + away], pixels[..., :, 479 - away])


def test_masks_mirror_with_their_images():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:3, 2:] = 255
    batch = UNetImageProcessor(size=8, mirror_margin=4)(image, segmentation_maps=image[..., 0] // 255)
    assert batch["labels"].shape == (1, 16, 16)
    assert torch.equal(batch["labels"][0] == 1, batch["pixel_values"][0, 0] > 0)


def test_a_margin_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match="too few to mirror 92"):
        UNetImageProcessor(size=92, mirror_margin=92)(COLOUR)


@torch.no_grad()
def test_the_mask_of_an_unpadded_network_covers_the_whole_image():
    image = np.zeros((300, 500, 3), np.uint8)
    image[:60, 400:] = 255  # a corner
    processor = UNetImageProcessor(size=388, mirror_margin=92)
    pixels = processor(image)["pixel_values"]
    model = small_model(depth=4, base_channels=2, padding="valid").eval()
    logits = model(pixels).logits
    assert logits.shape == (1, 1, 388, 388)
    assert processor.post_process_semantic_segmentation(logits, [(300, 500)])[0].shape == (300, 500)
    covered = center_crop(pixels, (388, 388))[:, :1]  # what the logits cover
    (mask,) = processor.post_process_semantic_segmentation(covered, [(300, 500)])
    assert (mask.numpy() != (image[..., 0] > 0)).sum() <= 60 + 100  # a row and a column of the edge


# logits to masks


def test_mask_of_a_binary_head_by_hand():
    logits = torch.tensor([[[[logit(0.4), logit(0.6)], [logit(0.8), logit(0.2)]]]])
    processor = UNetImageProcessor(mask_threshold=0.3)
    for outputs in (logits, {"logits": logits}, logits.double()):
        (mask,) = processor.post_process_semantic_segmentation(outputs)
        assert mask.dtype == torch.int64
        assert mask.tolist() == [[1, 1], [1, 0]]
    (mask,) = processor.post_process_semantic_segmentation(logits, threshold=0.5)
    assert mask.tolist() == [[0, 1], [1, 0]]
    (mask,) = processor.post_process_semantic_segmentation(logits, threshold=0.7)
    assert mask.tolist() == [[0, 0], [1, 0]]


def test_a_probability_at_the_threshold_is_background():
    (mask,) = UNetImageProcessor().post_process_semantic_segmentation(torch.zeros(1, 1, 2, 2))
    assert mask.tolist() == [[0, 0], [0, 0]]


def test_logits_are_interpolated_before_the_threshold():
    logits = torch.tensor([[[[-3.0, 1.0]]], [[[1.0, 1.0]]]])
    masks = UNetImageProcessor().post_process_semantic_segmentation(logits, [(1, 4), (2, 3)])
    assert masks[0].tolist() == [[0, 0, 0, 1]]  # -3, -2, 0, 1
    assert masks[1].tolist() == [[1, 1, 1]] * 2


def test_mask_of_several_classes_by_hand():
    logits = torch.tensor([[[[2.0, 0.0]], [[1.0, 0.5]], [[0.0, 3.0]]]])
    (mask,) = UNetImageProcessor().post_process_semantic_segmentation(logits)
    assert mask.tolist() == [[0, 2]]
    (mask,) = UNetImageProcessor().post_process_semantic_segmentation(logits, torch.tensor([[2, 2]]))
    assert mask.tolist() == [[0, 2], [0, 2]]


@pytest.mark.parametrize("threshold", [-0.5, 2.0, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match="mask_threshold must lie between 0 and 1"):
        UNetImageProcessor().post_process_semantic_segmentation(torch.zeros(1, 1, 2, 2), threshold=threshold)


@pytest.mark.parametrize(("threshold", "marked"), [(0, 4), (1, 0), (0.0, 4), (1.0, 0)])
def test_threshold_0_marks_every_pixel_and_threshold_1_none(threshold, marked):
    logits = torch.tensor([[[[-200.0, 0.0], [200.0, 50.0]]]])
    for processor, call_threshold in (
        (UNetImageProcessor(), threshold),
        (UNetImageProcessor(mask_threshold=threshold), None),
    ):
        (mask,) = processor.post_process_semantic_segmentation(logits, threshold=call_threshold)
        (result,) = processor.post_process_instance_segmentation(logits, mask_threshold=call_threshold)
        assert mask.dtype == torch.int64 and int(mask.sum()) == marked == int((result["segmentation"] > 0).sum())


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_that_require_grad_and_scores(channels):
    logits = torch.randn(2, channels, 3, 4, requires_grad=True)
    processor = UNetImageProcessor(score_threshold=0.4)
    masks = processor.post_process_semantic_segmentation({"logits": logits}, [(6, 8), (3, 4)])
    scored = processor.post_process_semantic_segmentation(logits, [(6, 8), (3, 4)], return_segmentation_scores=True)
    for mask, result in zip(masks, scored, strict=True):
        assert torch.equal(mask, result.segmentation) and not result.segmentation_scores.requires_grad
        assert result.segmentation_scores.shape == (max(2, channels), *mask.shape)
    plain = UNetImageProcessor().post_process_semantic_segmentation(logits, return_segmentation_scores=True)
    assert all(torch.equal(result.segmentation_scores.argmax(0), result.segmentation) for result in plain)
    assert processor.post_process_instance_segmentation(logits)[0]["segmentation"].shape == (3, 4)


def test_target_sizes_must_match_the_batch():
    with pytest.raises(ValueError, match="for each of 2 images"):
        UNetImageProcessor().post_process_semantic_segmentation(torch.zeros(2, 1, 2, 2), [(4, 4)])


# logits to polyps

PROBABILITIES = [
    [0.9, 0.8, 0.1, 0.1, 0.6],
    [0.2, 0.1, 0.7, 0.1, 0.8],
    [0.1, 0.1, 0.1, 0.1, 0.1],
    [0.6, 0.1, 0.1, 0.1, 0.1],
]


def binary_logits():
    return torch.tensor([[[[logit(probability) for probability in row] for row in PROBABILITIES]]])


def test_polyps_by_hand():
    (result,) = UNetImageProcessor().post_process_instance_segmentation(binary_logits())
    assert result["segmentation"].dtype == torch.int32
    assert result["segmentation"].tolist() == [[1, 1, 0, 0, 2], [0, 0, 1, 0, 2], [0, 0, 0, 0, 0], [3, 0, 0, 0, 0]]
    segments = result["segments_info"]
    assert [(segment["id"], segment["label_id"]) for segment in segments] == [(1, 1), (2, 1), (3, 1)]
    assert [segment["score"] for segment in segments] == pytest.approx([0.8, 0.7, 0.6], abs=1e-6)
    boxes = [(segment["area"], segment["bbox"]) for segment in segments]
    assert boxes == [(3, [0, 0, 3, 2]), (2, [4, 0, 1, 2]), (1, [0, 3, 1, 1])]


@pytest.mark.parametrize(("threshold", "scores"), [(0.65, [0.8, 0.7]), (0.75, [0.8]), (0.9, [])])
def test_low_scores_are_dropped_on_request(threshold, scores):
    (result,) = UNetImageProcessor().post_process_instance_segmentation(binary_logits(), threshold=threshold)
    assert [segment["score"] for segment in result["segments_info"]] == pytest.approx(scores, abs=1e-6)
    assert [segment["id"] for segment in result["segments_info"]] == list(range(1, len(scores) + 1))
    assert set(result["segmentation"].unique().tolist()) == set(range(len(scores) + 1))


@pytest.mark.parametrize(("score_threshold", "polyps"), [(0.0, 3), (0.65, 2), (0.75, 1), (0.9, 0)])
def test_unlikely_regions_are_in_neither_mask_nor_entries(score_threshold, polyps):
    processor = UNetImageProcessor(score_threshold=score_threshold)
    (result,) = processor.post_process_instance_segmentation(binary_logits())
    (mask,) = processor.post_process_semantic_segmentation(binary_logits())
    assert len(result["segments_info"]) == polyps
    assert mask.dtype == torch.int64 and torch.equal(mask, (result["segmentation"] > 0).long())
    (unfiltered,) = processor.post_process_instance_segmentation(binary_logits(), threshold=0.0)
    assert len(unfiltered["segments_info"]) == 3


def test_unlikely_regions_of_several_classes_become_background():
    logits = torch.zeros(1, 3, 1, 5)
    logits[0, 0, 0, 2] = 5.0
    logits[0, 1, 0, 3:] = math.log(2)  # scores 1/2
    logits[0, 2, 0, :2] = math.log(6)  # scores 3/4
    (mask,) = UNetImageProcessor(score_threshold=0.6).post_process_semantic_segmentation(logits)
    assert mask.tolist() == [[2, 2, 0, 0, 0]]


def test_mask_threshold_of_polyps():
    processor = UNetImageProcessor(mask_threshold=0.75)
    (result,) = processor.post_process_instance_segmentation(binary_logits())
    assert result["segmentation"].tolist()[0] == [1, 1, 0, 0, 0]
    (result,) = processor.post_process_instance_segmentation(binary_logits(), mask_threshold=0.15)
    assert result["segmentation"].tolist()[1][0] == 1


def test_no_polyp_no_entry():
    (result,) = UNetImageProcessor().post_process_instance_segmentation(torch.full((1, 1, 4, 4), -3.0))
    assert result["segments_info"] == []
    assert not result["segmentation"].any()


def test_polyps_of_several_classes_by_hand():
    logits = torch.full((1, 3, 1, 5), 0.0)
    logits[0, 0, 0, 2] = 5.0
    logits[0, 1, 0, 3:] = math.log(2)  # 1/4, 1/2, 1/4
    logits[0, 2, 0, :2] = math.log(6)  # 1/8, 1/8, 3/4
    (result,) = UNetImageProcessor().post_process_instance_segmentation(logits)
    assert result["segmentation"].tolist() == [[2, 2, 0, 1, 1]]
    assert [(segment["id"], segment["label_id"]) for segment in result["segments_info"]] == [(1, 1), (2, 2)]
    assert [segment["score"] for segment in result["segments_info"]] == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize("channels", [1, 4])
def test_the_union_of_polyps_is_the_mask(channels):
    logits, sizes = torch.randn(2, channels, 12, 16), [(50, 37), (12, 16)]
    processor = UNetImageProcessor()
    masks = processor.post_process_semantic_segmentation(logits, sizes)
    results = processor.post_process_instance_segmentation(logits, target_sizes=sizes)
    for mask, result in zip(masks, results, strict=True):
        labels = torch.zeros_like(mask)
        for segment in result["segments_info"]:
            region = result["segmentation"] == segment["id"]
            assert ndimage.label(region.numpy(), np.ones((3, 3)))[1] == 1
            assert 0 < segment["score"] < 1
            labels[region] = segment["label_id"]
        assert len(result["segments_info"]) > 1
        assert torch.equal(labels, mask)


def test_annotations_of_coco_are_refused():
    with pytest.raises(ValueError, match="return_coco_annotation=True is not supported"):
        UNetImageProcessor().post_process_instance_segmentation(binary_logits(), return_coco_annotation=True)
