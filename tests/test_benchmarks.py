"""The benchmark's arithmetic, that both sides compute the same, and that it runs; no time is judged."""

import json

import numpy as np
import pytest
import torch

from hub_unets.benchmarks import loop_profile, loops, networks, page, run
from hub_unets.benchmarks.inference import dice
from hub_unets.benchmarks.timing import compared, interleaved, peak_mb
from hub_unets.training.data.phantoms import phantom_dataset
from hub_unets.training.measure.score import Scores

TINY = {
    "images": 2, "rounded_for": 2, "rounds": 1, "backbones": ["mobilenetv2_100"], "sizes": [64],
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


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolution"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::hardtanh_backward", "activation"),
        ("aten::_to_copy", "copies and casts"),
        ("aten::log_sigmoid_forward", loop_profile.REST),
    ],
)
def test_operators_have_a_kind(operator, kind):
    assert loop_profile.kind_of(operator) == kind


def test_a_profile_counts_what_was_called():
    image, weight = torch.rand(1, 8, 64, 64), torch.rand(8, 8, 3, 3)
    spent = loop_profile.by_kind(lambda: torch.nn.functional.conv2d(image, weight), 2)
    assert spent["convolution"] > 0 and spent["batch norm"] == spent["optimiser"] == 0


def test_the_profile_names_the_limit():
    kinds = [*loop_profile.KINDS, loop_profile.REST]
    ours, plain = dict.fromkeys(kinds, 1.0), dict.fromkeys(kinds, 3.0)
    text = page.loop_parts({"step_profile": {"1": {"ours": ours, "plain": plain}}})
    assert "convolutions are 14% of our step; bfloat16 makes them 3.00 times as fast" in text
    assert "the step would be 21.00 times as fast" in text and "| all | 7.0 | 21.0 | 3.0 |" in text
    assert "was not measured" in page.loop_parts({})


def test_rows_before_a_training_are_timed():
    (figures,) = loops.data_seconds([20])
    assert figures["rows"] == 20 and min(figures.values()) >= 0


def test_repeated_scores_are_kept_and_written(monkeypatch):
    written = []
    monkeypatch.setattr(loops, "write_tables", lambda _, parts: written.append(parts["test"].names))
    scores = Scores()
    for name, counts in (("a", [[5, 1, 2, 9]]), ("b", [[0, 1, 2, 9]])):
        scores.names.append(name)
        scores.counts.append(np.array(counts))
        scores.losses.append(0.5)
    loops.keep(scores, 5)
    assert written == [["a", "b", "a", "b", "a"]] and np.asarray(scores.counts)[:, 0, 0].tolist() == [5, 0, 5, 0, 5]


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
