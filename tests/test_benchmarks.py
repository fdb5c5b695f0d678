"""The benchmark's arithmetic, that both sides compute the same, and that it runs; no time is judged."""

import json

import numpy as np
import pytest

from hub_unets.benchmarks import loops, networks, page, run
from hub_unets.benchmarks.inference import dice
from hub_unets.benchmarks.timing import compared, interleaved, peak_mb
from hub_unets.training.data.phantoms import phantom_dataset

TINY = {
    "images": 2, "calibration": 2, "rounds": 1, "backbones": ["mobilenetv2_100"], "sizes": [64],
    "network_rounds": 1, "training_rounds": 1, "loop_rounds": 1, "size": 64, "growth_sizes": [64],
    "growth_batches": [2], "import_rounds": 1, "loader_images": [8], "evaluation_images": [8],
    "data_rows": [20], "profile_rounds": 1,
}  # fmt: skip


def test_ratios_are_medians_over_rounds():
    seconds = {"a": [1.0, 10.0, 3.0], "b": [2.0, 50.0, 3.0]}
    assert compared(seconds, "b", units=2) == {
        "a": {"ms": 1500.0, "times_faster": 2.0}, "b": {"ms": 1500.0, "times_faster": 1.0},
    }  # fmt: skip


def test_sides_take_turns():
    calls = []
    seconds = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 2, 1, usual={"b"})
    assert calls == ["a", "b"] * 3 and [len(times) for times in seconds.values()] == [2, 2]


def test_peak_memory_sees_an_array():
    peak = peak_mb(lambda: np.ones(64 * 2**20, np.uint8))
    assert peak is None or 60 < peak < 90


def test_dice_of_masks():
    first_mask, second_mask = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 1]], bool)
    assert dice(first_mask, second_mask) == 0.4 and dice(first_mask & ~first_mask, second_mask & ~second_mask) == 1.0


@pytest.mark.parametrize("backbone", networks.WIDTHS)
@pytest.mark.parametrize("variant", networks.THEIRS)
def test_both_networks_give_the_same_logits(variant, backbone):
    network = networks.our_network(variant, backbone)
    reference = networks.their_network(variant, network, backbone)
    assert networks.largest_difference(networks.Logits(network), reference) < 1e-4
    assert networks.gmacs(networks.Logits(network), 64) < networks.gmacs(reference, 64)


def test_plain_and_our_loader_give_the_same_kind_of_batch(tmp_path):
    rows = phantom_dataset(8, size=64)
    batches = {name: next(iterator) for name, iterator in loops.loaders(rows, 64, 4, tmp_path).items()}
    kinds = {
        name: {key: (tensor.shape, tensor.dtype) for key, tensor in batch.items()} for name, batch in batches.items()
    }
    assert kinds[loops.OURS] == kinds[loops.PLAIN]


@pytest.mark.slow
def test_a_tiny_benchmark_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "QUICK", TINY)
    monkeypatch.setattr(networks, "variant_names", lambda: ["attention_unet", "unet"])
    run.main(["--quick", "--data", "phantoms?count=12&size=64&seed=0", "--output", str(tmp_path)])
    results = json.loads((tmp_path / page.RESULTS).read_text())
    assert [row["variant"] for row in results["networks"]] == ["attention_unet", "unet"]
    text = (tmp_path / page.PAGE).read_text()
    assert results["command"] in text and results["hardware"]["cpu"] in text
    assert (tmp_path / page.PLOT).stat().st_size > 10000
