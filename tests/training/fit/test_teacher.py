"""A teacher sees the batch's own pixels by its own processor, and its mean probability is what the loss takes."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.fit.teacher import Teacher, soft_cross_entropy
from tests.variants import small_config, small_model

SIZE = 32


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8))


@pytest.fixture
def save(tmp_path):
    """A function that saves a small model with a processor of its own, and returns (folder, model, processor)."""

    def saved(name, seed, **fields):
        torch.manual_seed(seed)
        model = small_model(base_channels=4, depth=2, **fields).eval()
        processor = UNetImageProcessor(size=48, image_mean=[0.1 * seed, 0.5, 0.4])
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return str(tmp_path / name), model, processor

    return saved


def logits_of(model, processor, images, size):
    with torch.no_grad():
        return F.interpolate(model(**processor(images)).logits, size=size, mode="bilinear")


class TestTeacher:
    def test_mean_probability_of_two_models_by_their_own_processors(self, save, images):
        first, second = save("one", 1), save("other", 2)
        student = UNetImageProcessor(size=SIZE)
        teacher = Teacher([first[0], second[0]], student, small_config())
        probabilities = teacher(student(images)["pixel_values"], (SIZE, SIZE))
        expected = [logits_of(*saved[1:], images, (SIZE, SIZE)).sigmoid() for saved in (first, second)]
        assert probabilities.shape == (2, 1, SIZE, SIZE) and probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities, (expected[0] + expected[1]) / 2, rtol=1e-4, atol=1e-5)

    def test_the_pixels_are_those_before_normalisation_and_mirroring(self, save, images):
        student = UNetImageProcessor(size=SIZE, image_mean=[0.5, 0.4, 0.3], mirror_margin=6)
        teacher = Teacher([save("one", 1)[0]], student, small_config())
        assert np.array_equal(teacher._images(student(images)["pixel_values"]), images)

    def test_flips(self, save, images):
        folder, model, processor = save("one", 1)
        student = UNetImageProcessor(size=SIZE)
        result = Teacher([folder], student, small_config(), flips=True)(student(images)["pixel_values"], (SIZE, SIZE))
        mirrored = [np.flip(image, axes) for axes in ((), 1, 0, (0, 1)) for image in images]
        logits = logits_of(model, processor, mirrored, (SIZE, SIZE)).unflatten(0, (4, 2))
        flips = [(), (-1,), (-2,), (-2, -1)]
        mean = sum(part.flip(axes) for part, axes in zip(logits, flips, strict=True)) / 4
        torch.testing.assert_close(result, mean.sigmoid(), rtol=1e-3, atol=1e-4)

    def test_several_classes_teach_the_polyp_as_their_sum_and_one_another(self, save, images):
        labels = {
            "num_labels": 3,
            "id2label": {0: "background", 1: "adenoma", 2: "hyperplastic"},
            "binary_head": False,
        }
        folder, model, processor = save("classes", 3, **labels)
        student, size = UNetImageProcessor(size=SIZE), (SIZE, SIZE)
        pixels = student(images)["pixel_values"]
        softmax = logits_of(model, processor, images, size).softmax(dim=1)
        polyp = Teacher([folder], student, small_config())(pixels, size)
        torch.testing.assert_close(polyp, softmax[:, 1:].sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
        polyp = Teacher([folder], student, small_config(**labels))(pixels, size)
        torch.testing.assert_close(polyp, softmax, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="teacher .*one has 2 labels, the network 3"):
            Teacher([save("one", 1)[0]], student, small_config(**labels))

    def test_a_binary_head_teaches_a_network_of_two_classes(self, save, images):
        folder, model, processor = save("one", 1)
        student, size = UNetImageProcessor(size=SIZE), (SIZE, SIZE)
        result = Teacher([folder], student, small_config(binary_head=False))(student(images)["pixel_values"], size)
        polyp = logits_of(model, processor, images, size).sigmoid()
        torch.testing.assert_close(result, torch.cat([1 - polyp, polyp], 1), rtol=1e-4, atol=1e-5)

    def test_the_network_learns_from_it_and_it_does_not_change(self, save, images):
        folder, _, _ = save("one", 1)
        student = UNetImageProcessor(size=SIZE)
        pixels = student(images)["pixel_values"]
        teacher, model = Teacher([folder], student, small_config()), small_model(base_channels=4, depth=2)
        before = copy.deepcopy(teacher.models[0][0].state_dict())
        optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
        for _ in range(12):
            loss = soft_cross_entropy(model(pixels).logits, teacher(pixels, (SIZE, SIZE))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.02
        assert all(torch.equal(value, before[name]) for name, value in teacher.models[0][0].state_dict().items())

    def test_of_images_that_keep_their_values(self, tmp_path, images):
        alike = {"num_channels": 5, "intensity": {"window": [0, 1000]}}
        model, processor = small_model(num_channels=5).eval(), UNetImageProcessor(size=48, image_mean=0.2, **alike)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        student = UNetImageProcessor(size=SIZE, mirror_margin=6, **alike)
        values = list(np.random.default_rng(0).integers(0, 1001, (2, SIZE, SIZE, 5), np.uint16))
        teacher = Teacher([str(tmp_path)], student, small_config(num_channels=5))
        result = teacher(student(values)["pixel_values"], (SIZE, SIZE))
        expected = logits_of(model, processor, values, (SIZE, SIZE)).sigmoid()
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        for other in ({"num_channels": 5}, {}):
            with pytest.raises(ValueError, match="takes images of num_channels=5 and intensity=.*must be alike"):
                Teacher([str(tmp_path)], UNetImageProcessor(size=SIZE, **other), small_config())

    def test_what_cannot_be_loaded(self, tmp_path):
        with pytest.raises(OSError, match="no folder with a config.json"):
            Teacher([str(tmp_path / "nothing")], UNetImageProcessor(size=SIZE), small_config())


class TestSoftCrossEntropy:
    def test_binary_by_hand(self):
        logits = torch.tensor([math.log(3), 0.0]).reshape(1, 1, 1, 2)  # probabilities .75 and .5
        loss = soft_cross_entropy(logits, torch.tensor([1.0, 0.2]).reshape(1, 1, 1, 2))
        assert loss.tolist() == pytest.approx([(-math.log(0.75) + math.log(2)) / 2])

    def test_classes_by_hand(self):
        logits = torch.tensor([0.0, 0.0, math.log(2)]).reshape(1, 3, 1, 1)  # 1/4, 1/4, 1/2
        loss = soft_cross_entropy(logits, torch.tensor([0.5, 0.0, 0.5]).reshape(1, 3, 1, 1))
        assert loss.tolist() == pytest.approx([0.5 * math.log(4) + 0.5 * math.log(2)])

    def test_one_number_an_image_lowest_at_the_teacher_s_probability(self):
        target = torch.full((3, 1, 2, 2), 0.3)
        logits = torch.tensor([-2.0, math.log(0.3 / 0.7), 1.0])[:, None, None, None].expand(3, 1, 2, 2)
        losses = soft_cross_entropy(logits, target)
        assert losses.shape == (3,) and losses.argmin() == 1
