"""The image-segmentation pipeline: every polyp of the mask, at the image's own size, without a warning."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor, UNetImageSegmentationPipeline
from tests.variants import each_pair, shared_model, small_model


def noise(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), np.uint8))


def small_pipeline(model, **options):
    return UNetImageSegmentationPipeline(model=model, image_processor=UNetImageProcessor(size=32, **options))


@torch.no_grad()
def semantic_mask(pipeline, image):
    processor = pipeline.image_processor
    outputs = pipeline.model(processor(image)["pixel_values"])
    return processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0].numpy()


def union(entries, names):
    labels = np.zeros((40, 56), np.int64)
    for entry in entries:
        mask = np.asarray(entry["mask"])
        assert set(np.unique(mask)) == {0, 255}
        assert 0 < entry["score"] <= 1
        labels[mask > 0] = names[entry["label"]]
    return labels


@each_pair
def test_the_union_of_the_entries_is_the_mask(variant, encoder):
    pipeline = small_pipeline(small_model(variant, encoder).eval())
    with torch.no_grad():  # half of the pixels are polyp, whatever the random weights
        outputs = pipeline.model(pipeline.image_processor(noise())["pixel_values"])
        pipeline.model.head.classifier.bias -= outputs.logits.median()
    mask = semantic_mask(pipeline, noise())
    assert 0 < mask.sum() < mask.size
    entries = pipeline(noise())
    assert {entry["label"] for entry in entries} == {"polyp"}
    assert min(entry["score"] for entry in entries) < 0.9  # the stock pipeline drops these
    assert np.array_equal(union(entries, {"polyp": 1}), mask)


def test_a_path_an_image_and_a_list_give_the_same(tmp_path):
    pipeline = small_pipeline(shared_model("unet", "plain"))
    paths = [str(tmp_path / f"{seed}.png") for seed in (0, 1)]
    for seed, path in enumerate(paths):
        noise(seed).save(path)
    expected = [union(pipeline(noise(seed)), {"polyp": 1}) for seed in (0, 1)]
    assert not np.array_equal(*expected)
    assert np.array_equal(union(pipeline(paths[0]), {"polyp": 1}), expected[0])
    for images in (paths, [noise(0), noise(1)]):
        results = pipeline(images)
        assert [
            np.array_equal(union(entries, {"polyp": 1}), mask) for entries, mask in zip(results, expected, strict=True)
        ]


def test_several_classes():
    pipeline = small_pipeline(small_model(num_labels=3).eval())
    mask = semantic_mask(pipeline, noise())
    assert {1, 2} <= set(np.unique(mask))
    assert np.array_equal(union(pipeline(noise()), {"LABEL_1": 1, "LABEL_2": 2}), mask)


def test_the_processors_threshold_is_the_default():
    pipeline = small_pipeline(shared_model("unet", "plain"), mask_threshold=0.6)
    strict = union(pipeline(noise()), {"polyp": 1})
    assert np.array_equal(strict, semantic_mask(pipeline, noise()))
    assert union(pipeline(noise(), mask_threshold=0.5), {"polyp": 1}).sum() > strict.sum()
    highest_score = max(entry["score"] for entry in pipeline(noise()))
    assert len(pipeline(noise(), threshold=highest_score)) == 1


@pytest.mark.parametrize("options", [{}, {"mask_threshold": 0.45}, {"score_threshold": 0.5, "mask_threshold": 0.48}])
def test_the_stock_class_keeps_the_processors_defaults_too(options):
    """`pipeline("image-segmentation", model=OBJECT, image_processor=OBJECT)` can't know of our class."""
    model, processor = shared_model("unet", "plain"), UNetImageProcessor(size=32, **options)
    stock = transformers.pipeline("image-segmentation", model=model, image_processor=processor)
    assert type(stock) is transformers.ImageSegmentationPipeline
    mask = semantic_mask(stock, noise())
    assert mask.sum() > 0 and np.array_equal(union(stock(noise()), {"polyp": 1}), mask)
    pipeline = small_pipeline(model, **options)
    highest_score = max(entry["score"] for entry in stock(noise()))
    assert stock(noise(), threshold=highest_score + 1e-6) == [] and len(stock(noise(), threshold=highest_score)) == 1
    entries = pipeline(noise(), threshold=0.9, mask_threshold=0.5, overlap_mask_area_threshold=0.5)
    assert len(entries) == sum(entry["score"] >= 0.9 for entry in pipeline(noise(), mask_threshold=0.5))


def test_an_image_of_16_bits_is_not_clipped(tmp_path):
    pipeline = small_pipeline(shared_model("unet", "plain"))
    grey = noise().convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "image.png")
    mask = union(pipeline(str(tmp_path / "image.png")), {"polyp": 1})
    assert np.array_equal(mask, union(pipeline(grey), {"polyp": 1}))
    assert 0 < mask.sum() < mask.size


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match="no-such-image.png"):
        small_pipeline(shared_model("unet", "plain"))("no-such-image.png")


@pytest.mark.parametrize(
    ("pipeline_class", "complains"),
    [(transformers.ImageSegmentationPipeline, True), (UNetImageSegmentationPipeline, False)],
)
def test_only_the_stock_class_calls_the_model_unsupported(pipeline_class, complains, caplog):
    transformers.logging.enable_propagation()
    try:
        pipeline_class(model=shared_model("unet", "plain"), image_processor=UNetImageProcessor(size=32))
    finally:
        transformers.logging.disable_propagation()
    assert ("is not supported" in caplog.text) == complains
