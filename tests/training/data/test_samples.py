"""The cache holds exactly what the processor makes of a file, is read when it can be, and made anew when it must."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data import samples as module
from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.reading import file_digest, read_image
from hub_unets.training.data.samples import (
    EpochSampler,
    EvaluationSamples,
    TrainingSamples,
    _shrunk,
    cached_samples,
    collate,
    growing_sides,
    require_foreground,
    without_labels,
)
from hub_unets.training.errors import UserError

SIZE = 24
FEATURES = datasets.Features(
    name=datasets.Value("string"), image=datasets.Image(decode=False), annotation=datasets.Image(decode=False)
)


def png(array):
    stored = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def make_rows(masks=None):
    """Three rows of 30 x 40, 37 x 29 and 26 x 26 pixels; masks black and white unless given."""
    rng = np.random.default_rng(0)
    rows = []
    for number, shape in enumerate([(30, 40), (37, 29), (26, 26)]):
        image = png(rng.integers(0, 256, (*shape, 3)))
        mask = rng.integers(0, 2, shape) * 255 if masks is None else masks[number]
        files = {"image": {"bytes": image, "path": None}, "annotation": {"bytes": png(mask), "path": None}}
        rows.append({"name": f"frame{number}", **files})
    return datasets.Dataset.from_list(rows, features=FEATURES)


def cached(rows, folder, processor=None, num_labels=2, boundary_width=None):
    digests = [file_digest(image) for image in rows["image"]]
    processor = processor or UNetImageProcessor(size=SIZE)
    return cached_samples(rows, digests, processor, num_labels, folder, boundary_width)


def array(stored, *shape):
    return np.frombuffer(stored, np.uint8).reshape(shape)


def replaced(rows, column, value):
    """The rows with another image or mask in the first of them."""
    new = [{**row, column: {"bytes": value, "path": None}} if i == 0 else row for i, row in enumerate(rows)]
    return datasets.Dataset.from_list(new, features=FEATURES)


@pytest.fixture
def decoded(monkeypatch):
    """How often a file is decoded."""
    calls = []
    read_pair = module.read_pair
    monkeypatch.setattr(module, "read_pair", lambda *arguments: (calls.append(arguments), read_pair(*arguments))[1])
    return calls


class TestCachedSamples:
    def test_pixels_are_the_processors_resize_of_the_decoded_file(self, tmp_path):
        rows, processor = make_rows(), UNetImageProcessor(size=(20, SIZE))
        samples = cached(rows, tmp_path, processor)
        assert samples["name"] == rows["name"] == ["frame0", "frame1", "frame2"]
        for row, sample in zip(rows, samples, strict=True):
            expected = np.asarray(processor.resize(read_image(row["image"], row["name"])))
            assert np.array_equal(array(sample["pixels"], 20, SIZE, 3), expected)

    def test_masks_are_cut_at_127_and_resized_by_nearest(self, tmp_path):
        greys = [np.random.default_rng(i).choice([0, 9, 127, 128, 240, 255], (12 * i + 30, 40)) for i in range(3)]
        rows = make_rows(greys)
        rows = datasets.Dataset.from_list(
            [{**row, "image": row["annotation"]} for row in rows], features=FEATURES
        )  # the mask is its own image, so that the sizes agree
        for grey, sample in zip(greys, cached(rows, tmp_path), strict=True):
            labels = Image.fromarray((grey > 127).astype(np.uint8))
            expected = np.asarray(labels.resize((SIZE, SIZE), Image.Resampling.NEAREST))
            assert np.array_equal(array(sample["labels"], SIZE, SIZE), expected)

    @pytest.mark.parametrize(("num_labels", "values"), [(2, [0, 1, 255]), (3, [0, 1, 2, 255])])
    def test_masks_at_the_original_size_come_back(self, tmp_path, num_labels, values):
        masks = [np.random.default_rng(0).choice(values, shape) for shape in [(30, 40), (37, 29), (26, 26)]]
        samples = cached(make_rows(masks), tmp_path, num_labels=num_labels)
        items = list(EvaluationSamples(samples, UNetImageProcessor(size=SIZE)))
        for number, (mask, item) in enumerate(zip(masks, items, strict=True)):
            assert np.array_equal(item["native"], mask)
            assert item["row"] == number
            assert set(item["labels"].unique().tolist()) == set(values)

    def test_second_call_reads_the_cache(self, tmp_path, decoded):
        first = cached(make_rows(), tmp_path)
        assert len(decoded) == 3
        second = cached(make_rows(), tmp_path)
        assert len(decoded) == 3
        assert first[:] == second[:]
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("column", ["image", "annotation"])
    def test_a_changed_file_is_decoded_anew(self, tmp_path, decoded, column):
        rows = make_rows()
        before = cached(rows, tmp_path)[0]
        content = png(np.full((30, 40, 3), 255)) if column == "image" else png(np.full((30, 40), 255))
        after = cached(replaced(rows, column, content), tmp_path)[0]
        assert len(decoded) == 6
        key = {"image": "pixels", "annotation": "labels"}[column]
        assert before[key] != after[key] and set(after[key]) == {255 if column == "image" else 1}

    @pytest.mark.parametrize(
        ("options", "num_labels"), [({"size": 20}, 2), ({"size": SIZE, "resample": 3}, 2), ({"size": SIZE}, 3)]
    )
    def test_changed_settings_make_a_new_cache(self, tmp_path, decoded, options, num_labels):
        cached(make_rows(), tmp_path)
        samples = cached(make_rows(), tmp_path, UNetImageProcessor(**options), num_labels)
        assert len(decoded) == 6
        assert len(samples[0]["labels"]) == options["size"] ** 2

    def test_each_width_of_the_boundary_has_a_cache(self, tmp_path, decoded):
        masks = [np.zeros(shape) for shape in [(30, 40), (37, 29), (26, 26)]]
        for mask in masks:
            mask[4:20, 4:20] = 255
        shares = []
        for width in (None, 1, 3, 3):
            native = EvaluationSamples(
                cached(make_rows(masks), tmp_path, None, 3, width), UNetImageProcessor(size=SIZE)
            )
            shares.append([int((item["native"] == 2).sum()) for item in native])
        assert shares == [[0] * 3, [16**2 - 14**2] * 3, [16**2 - 10**2] * 3, [16**2 - 10**2] * 3]
        assert len(decoded) == 9

    def test_the_boundary_is_made_before_the_mask_shrinks(self, tmp_path):
        mask = np.zeros((240, 240))
        mask[40:200, 40:200] = 255  # 16 x 16 at the processor's size
        rows = replaced(replaced(make_rows(), "image", png(np.zeros((240, 240, 3)))), "annotation", png(mask))
        labels = array(cached(rows, tmp_path, None, 3, 10)[0]["labels"], SIZE, SIZE)
        assert [int((labels == label).sum()) for label in (0, 1, 2)] == [24**2 - 16**2, 14**2, 16**2 - 14**2]

    def test_normalisation_is_no_part_of_the_cache(self, tmp_path, decoded):
        for mean in (0.5, 0.4):
            cached(make_rows(), tmp_path, UNetImageProcessor(size=SIZE, image_mean=[mean] * 3, mirror_margin=2))
        assert len(decoded) == 3

    def test_files_on_disk(self, tmp_path, decoded):
        rows = []
        for row in make_rows():
            for column in ("image", "annotation"):
                path = tmp_path / f"{row['name']}-{column}.png"
                path.write_bytes(row[column]["bytes"])
                row[column] = {"bytes": None, "path": str(path)}
            rows.append(row)
        on_disk = datasets.Dataset.from_list(rows, features=FEATURES)
        assert cached(on_disk, tmp_path / "cache")[:] == cached(make_rows(), tmp_path / "cache")[:]
        assert len(decoded) == 3  # the same files under the same names: one cache

    def test_a_bad_file_is_named(self, tmp_path):
        rows = replaced(make_rows(), "image", b"not an image")
        with pytest.raises(ValueError, match="frame0: not a readable image"):
            cached(rows, tmp_path)
        assert not list(tmp_path.glob("*.arrow"))

    def test_sizes_that_differ_are_named(self, tmp_path):
        with pytest.raises(ValueError, match="frame0: .*30"):
            cached(replaced(make_rows(), "annotation", png(np.full((30, 41), 255))), tmp_path)

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file/cache/.*can't be written .*make room, or set HF_DATASETS_CACHE"):
            cached(make_rows(), tmp_path / "file" / "cache")

    def test_the_default_folder_is_in_the_cache_of_datasets(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
        cached(make_rows(), None)
        assert len(list((tmp_path / "hub_unets").glob("*.arrow"))) == 1


def test_without_labels_every_pixel_is_ignored_and_the_rest_stays(tmp_path):
    rows = cached(make_rows(), tmp_path)
    for blank, row in zip(without_labels(rows), rows, strict=True):
        assert set(blank["labels"]) == {255} and len(blank["labels"]) == SIZE * SIZE
        assert blank["pixels"] == row["pixels"] and blank["name"] == row["name"]


class TestTrainingSamples:
    @pytest.mark.parametrize("margin", [0, 4])
    def test_without_augmentation_they_are_what_a_user_feeds(self, tmp_path, margin):
        rows, processor = make_rows(), UNetImageProcessor(size=SIZE, image_mean=[0.5, 0.4, 0.3], mirror_margin=margin)
        samples = TrainingSamples(cached(rows, tmp_path, processor), processor, Augmentation([], 0))
        assert len(samples) == 3
        for index, row in enumerate(rows):
            item = samples[(5, index)]
            mask = np.asarray(read_image(row["annotation"], row["name"]))[..., 0] > 127
            served = processor(read_image(row["image"], row["name"]), segmentation_maps=mask.astype(np.uint8))
            assert item["pixel_values"].shape == (3, SIZE + 2 * margin, SIZE + 2 * margin)
            assert torch.equal(item["pixel_values"], served["pixel_values"][0])
            assert item["labels"].dtype == torch.int64
            assert torch.equal(item["labels"], served["labels"][0])

    def test_epoch_and_index_reach_the_augmentation(self, tmp_path):
        processor = UNetImageProcessor(size=SIZE)
        augmentation = Augmentation([{"Affine": {"rotate": [-90, 90], "p": 1.0}}], 0)
        samples = TrainingSamples(cached(make_rows(), tmp_path), processor, augmentation)
        assert torch.equal(samples[(1, 0)]["pixel_values"], samples[(1, 0)]["pixel_values"])
        assert not torch.equal(samples[(1, 0)]["pixel_values"], samples[(2, 0)]["pixel_values"])

    def test_the_first_draws_may_be_smaller(self, tmp_path):
        rows, processor = cached(make_rows(), tmp_path), UNetImageProcessor(size=SIZE)
        samples = TrainingSamples(rows, processor, Augmentation([], 0), sides=[SIZE // 4, SIZE // 2])
        full, quarter = samples[(2, 0)], samples[(0, 0)]
        assert [samples[(draw, 0)]["labels"].shape[0] for draw in range(4)] == [SIZE // 4, SIZE // 2, SIZE, SIZE]
        assert quarter["pixel_values"].shape == (3, SIZE // 4, SIZE // 4)
        blocks = full["pixel_values"].reshape(3, SIZE // 4, 4, SIZE // 4, 4).mean(dim=(2, 4))
        assert (quarter["pixel_values"] - blocks).abs().max() < 1.1 / 255 / 0.224  # rounded to 8 bits
        assert torch.equal(quarter["labels"], full["labels"][2::4, 2::4])  # of each block of 4 the pixel at its centre

    def test_the_augmentation_may_take_any_other_frame(self, tmp_path):
        processor, pictures = UNetImageProcessor(size=SIZE), []

        def augmentation(image, mask, epoch, index, frames):
            pictures.append([frames[number] for number in range(len(frames))])
            return image, mask

        rows = cached(make_rows(), tmp_path)
        TrainingSamples(rows, processor, augmentation)[(0, 1)]
        for (image, mask), row in zip(pictures[0], rows, strict=True):
            assert image.tobytes() == row["pixels"] and image.shape == (SIZE, SIZE, 3)
            assert mask.tobytes() == row["labels"] and mask.shape == (SIZE, SIZE)


@pytest.mark.parametrize(
    ("first", "last", "epochs", "sides"),
    [
        (128, 256, 8, [128, 160, 160, 192, 224, 224]),
        (96, 224, 4, [96, 128, 192]),
        (48, 64, 4, [48, 64, 64]),
        (20, 30, 5, [20, 30, 30, 30]),
        (128, 256, 3, [128, 192]),
        (128, 256, 2, [128]),
    ],
)
def test_sides_grow_over_three_quarters_of_the_epochs(first, last, epochs, sides):
    assert growing_sides(first, last, epochs) == sides


def test_one_epoch_can_not_grow():
    with pytest.raises(UserError, match="first_train_size needs num_train_epochs of 2 or more"):
        growing_sides(128, 256, 1)


@pytest.mark.parametrize("channels", [1, 3, 5, 8])
def test_samples_of_any_number_of_channels_shrink(channels):
    pixels = np.random.default_rng(0).random((12, 12, channels), np.float32)
    blocks = pixels.reshape(4, 3, 4, 3, channels).mean(axis=(1, 3))
    assert np.abs(_shrunk(pixels, (4, 4)) - blocks).max() < 1e-6


def test_mirrored_margins_repeat_the_rows_inside_the_border(tmp_path):
    processor = UNetImageProcessor(size=SIZE, mirror_margin=3)
    item = EvaluationSamples(cached(make_rows(), tmp_path, processor), processor)[0]
    for values in (item["pixel_values"], item["labels"][None]):
        assert torch.equal(values[:, :3], values[:, 4:7].flip(1))
        assert torch.equal(values[..., -3:], values[..., -7:-4].flip(2))


class TestCollate:
    def test_masks_at_the_original_size_stay_a_list(self, tmp_path):
        processor = UNetImageProcessor(size=SIZE)
        batch = collate(list(EvaluationSamples(cached(make_rows(), tmp_path), processor)))
        assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE) and batch["labels"].shape == (3, SIZE, SIZE)
        assert [native.shape for native in batch["native"]] == [(30, 40), (37, 29), (26, 26)]
        assert batch["row"].tolist() == [0, 1, 2]

    def test_training_batches_have_tensors_only(self):
        items = [{"pixel_values": torch.full((3, 2, 2), i), "labels": torch.full((2, 2), i)} for i in (0, 1)]
        batch = collate(items)
        assert set(batch) == {"pixel_values", "labels"}
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["labels"][:, 0, 0].tolist() == [0, 1]


class TestEpochSampler:
    @pytest.mark.parametrize("epoch", [0, 3])
    def test_a_permutation_with_its_epoch(self, epoch):
        sampler = EpochSampler(50, seed=1)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(sampler) == 50
        assert {key[0] for key in keys} == {epoch}
        assert sorted(key[1] for key in keys) == list(range(50)) != [key[1] for key in keys]

    def test_copies_are_drawn_once_each_and_never_again(self):
        sampler = EpochSampler(7, seed=1, copies=3)
        assert len(sampler) == 21
        epoch_keys = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert sorted(index for _, index in keys) == sorted(list(range(7)) * 3)
            assert {draw for draw, _ in keys} == {3 * epoch, 3 * epoch + 1, 3 * epoch + 2}
            epoch_keys += keys
        assert len(set(epoch_keys)) == 42

    def test_depends_on_seed_and_epoch_alone(self):
        def order(seed, epoch):
            sampler = EpochSampler(50, seed)
            sampler.set_epoch(epoch)
            return [index for _, index in sampler]

        expected = order(1, 2)
        np.random.seed(0)
        torch.manual_seed(5)
        assert order(1, 2) == expected
        assert len({tuple(keys) for keys in (expected, order(2, 1), order(1, 3), order(2, 2))}) == 4


class TestForeground:
    SHAPES = (30, 40), (37, 29), (26, 26)

    def test_one_pixel_is_enough(self, tmp_path):
        masks = [np.zeros(shape) for shape in self.SHAPES]
        masks[2][10:14, 10:14] = 255
        require_foreground(cached(make_rows(masks), tmp_path))

    def test_none_is_refused(self, tmp_path):
        masks = [np.zeros(shape) for shape in self.SHAPES]
        with pytest.raises(ValueError, match="none of the 3 training masks has a foreground pixel"):
            require_foreground(cached(make_rows(masks), tmp_path))

    def test_ignored_pixels_are_no_foreground(self, tmp_path):
        masks = [np.full(shape, 255) for shape in self.SHAPES]
        samples = cached(make_rows(masks), tmp_path).map(lambda sample: {"labels": b"\xff\x00" * 288})
        with pytest.raises(ValueError, match="no.* foreground pixel"):
            require_foreground(samples)


def test_labels_of_an_earlier_reading_are_not_used(tmp_path, monkeypatch, decoded):
    cached(make_rows(), tmp_path)
    monkeypatch.setattr(module, "VERSION", "version 1")
    cached(make_rows(), tmp_path)
    assert len(decoded) == 6
