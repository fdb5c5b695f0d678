"""`drop_outside_view` wherever logits become marks: the mark in a second picture goes, the one in the view stays."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.hub_repos.inference.fast import FastSegmenter
from hub_unets.hub_repos.predict import Predictor
from hub_unets.modeling.handler import EndpointHandler
from hub_unets.modeling.image_processing_unet import UNetImageProcessor, UNetImageSegmentationPipeline
from hub_unets.training.measure.segmenter import Segmenter
from tests.variants import small_model

SIZE = 80, 128  # height, width
SECOND_PICTURE, POLYP = (slice(50, 60), slice(8, 18)), (slice(30, 50), slice(70, 90))


def screen():
    """A red view, a second picture beside it, and in each something green."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[6:74, 48:124] = pixels[44:66, 4:26] = 150, 60, 50
    for place in (SECOND_PICTURE, POLYP):
        pixels[place] = 40, 220, 40
    return Image.fromarray(pixels)


def processor(drop_outside_view=True, **options):
    plain = {"do_resize": False, "do_normalize": False, **options}
    return UNetImageProcessor(drop_outside_view=drop_outside_view, **plain)


def green(pixel_values, **_):
    """Logits of a network that takes all that is green for a polyp."""
    return SemanticSegmenterOutput(logits=20 * (pixel_values[:, 1:2] - pixel_values[:, :1]) - 6)


@pytest.fixture
def model(monkeypatch):
    model = small_model().eval()
    monkeypatch.setattr(model, "forward", green)
    return model


def marked(places):
    mask = np.zeros(SIZE, bool)
    for place in places:
        mask[place] = True
    return mask


INSIDE, BOTH = marked([POLYP]), marked([POLYP, SECOND_PICTURE])


def of_segmenter(model, processor):
    return Segmenter(model, processor)([screen()])[0][0]


def of_predictor(model, processor):
    return Predictor(model, processor)([screen()])[0].mask


def of_tiles(model, processor):
    return Predictor(model, processor, tile=64)([screen()])[0].mask


def of_handler(model, processor):
    handler = EndpointHandler.__new__(EndpointHandler)
    handler.model, handler.processor = model, processor
    masks = [Image.open(io.BytesIO(base64.b64decode(entry["mask"]))) for entry in handler({"inputs": screen()})]
    return np.any([np.asarray(mask) > 0 for mask in masks], axis=0)


def of_pipeline(model, processor):
    pipeline = UNetImageSegmentationPipeline(model=model, image_processor=processor)
    batch = pipeline([screen(), screen()], batch_size=2)
    masks = [
        np.any([np.asarray(entry["mask"]) > 0 for entry in entries], axis=0)
        for entries in (pipeline(screen()), *batch)
    ]
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[0], masks[2])
    return masks[0]


def of_fast_path(model, processor):
    segment = FastSegmenter.__new__(FastSegmenter)
    segment.processor = UNetImageProcessor.from_dict(processor.to_dict(), size=list(SIZE))
    segment.network = lambda pixels: green(torch.from_numpy(np.stack(pixels)) / 255).logits
    return segment([screen()])[0].numpy()


@pytest.mark.parametrize(
    "path",
    [of_segmenter, of_predictor, of_tiles, of_handler, of_pipeline, of_fast_path],
    ids=lambda path: path.__name__,
)
def test_each_path_honours_the_field(path, model):
    assert np.array_equal(path(model, processor(False)) > 0, BOTH)
    assert np.array_equal(path(model, processor()) > 0, INSIDE)


def test_it_survives_save_and_load_and_is_off_by_default(tmp_path):
    assert UNetImageProcessor().drop_outside_view is False
    processor().save_pretrained(tmp_path)
    for loaded in (UNetImageProcessor.from_pretrained(tmp_path), processor(False).from_dict(processor().to_dict())):
        assert loaded.drop_outside_view is True
    with pytest.raises(ValueError, match="drop_outside_view must be true or false, got 1"):
        UNetImageProcessor.from_pretrained(tmp_path, drop_outside_view=1)


@pytest.mark.parametrize("name", ["post_process_semantic_segmentation", "post_process_instance_segmentation"])
def test_without_the_images_it_is_an_error(name):
    outputs = green(processor()(screen())["pixel_values"])
    post_process = getattr(processor(), name)
    for given in (outputs, outputs.logits):
        with pytest.raises(ValueError, match=r"drop_outside_view=True needs the images: pass images=\[\.\.\.\]"):
            post_process(given)
    with pytest.raises(ValueError, match="images needs one image for each of 1 outputs, got 2"):
        post_process(outputs, images=[screen(), screen()])
    outputs["images"] = [screen()]
    (result,) = post_process(outputs)
    assert np.array_equal((result["segmentation"] if isinstance(result, dict) else result).numpy() > 0, INSIDE)


def test_an_image_of_another_size_than_the_mask_is_scaled():
    logits = green(processor()(screen())["pixel_values"])
    large = screen().resize((SIZE[1] * 3, SIZE[0] * 3), Image.NEAREST)
    (mask,) = processor().post_process_semantic_segmentation(logits, images=[large])
    assert np.array_equal(mask.numpy() > 0, INSIDE)


def test_of_several_classes_what_touches_the_view_stays_whole():
    labels = np.zeros(SIZE, np.int64)
    labels[POLYP], labels[SECOND_PICTURE] = 2, 1
    labels[20:24, 30:60] = 1  # reaches into the view
    labels[24:28, 30:36] = 2  # outside, and touches the last
    logits = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(labels), 3).permute(2, 0, 1)[None]
    (mask,) = processor().post_process_semantic_segmentation(logits, images=[screen()])
    (instances,) = processor().post_process_instance_segmentation(logits, images=[screen()])
    labels[SECOND_PICTURE] = 0
    assert np.array_equal(mask.numpy(), labels)
    assert np.array_equal(instances["segmentation"].numpy() > 0, labels > 0)
