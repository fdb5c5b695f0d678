"""What the GPU benchmark does without a GPU: its plan, its budget, its parts on the CPU, its page."""

import json
import sys

import pytest
import torch

from hub_unets.benchmarks import gpu, gpu_page, gpu_parts
from hub_unets.benchmarks.gpu import Budget, Part
from hub_unets.training.errors import UserError

CPU = torch.device("cpu")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_parts_that_no_longer_fit_are_left_out():
    clock, given = Clock(), {}

    def run_part(name, seconds):
        given[name] = seconds
        clock.now += 30
        return [{"x": 1}], ""

    plan = [Part("a", 10, 50), Part("b", 10, 50), Part("c", 50, 60), Part("d", 5, 60)]
    results = gpu.run_parts(plan, Budget(100, clock), run_part)
    assert given == {"a": 50, "b": 50, "d": 40}
    assert results["c"] == {"rows": [], "note": "left out: 40 s were left of the budget"}
    assert [bool(part["rows"]) for part in results.values()] == [True, True, False, True]


def test_the_plan_keeps_the_budget():
    clock = Clock()

    def run_part(name, seconds):
        clock.now += seconds
        return [], ""

    gpu.run_parts(gpu.PLAN, Budget(gpu.SECONDS, clock), run_part)
    assert clock.now <= 100 + gpu.SECONDS
    assert all(0 < part.least <= part.most for part in gpu.PLAN) and gpu.SECONDS <= 480


@pytest.mark.parametrize(
    ("code", "seconds", "note"),
    [
        ("pass", 60, ""),
        ("import time; time.sleep(60)", 3, "stopped after 3 s"),
        ("raise ValueError('out of memory')", 60, "failed: ValueError: out of memory"),
    ],
)
def test_a_process_keeps_what_it_printed(code, seconds, note):
    program = f"""print('{{"ms": 1}}', flush=True)\nprint('a warning', flush=True)\n{code}"""
    assert gpu.run_process([sys.executable, "-c", program], seconds) == ([{"ms": 1}], note)


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("No CUDA device is at hand")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="seconds must be above 0, got 0"):
        gpu.main(["--seconds", "0"])


@pytest.mark.parametrize("name", ["float32", "bf16"])
def test_modes_give_the_same_logits(name):
    pixels = torch.rand(2, 3, 32, 32)
    network, mode = torch.nn.Conv2d(3, 4, 3), gpu_parts.MODES[name]
    expected = network(pixels)
    call = gpu_parts.forward_call(gpu_parts.prepared(network, mode, CPU), mode, CPU, pixels)
    assert call().dtype == torch.float32 and torch.allclose(call(), expected, atol=0.02)


def test_latency_is_of_each_mode_and_size():
    rows = list(gpu_parts.latency(CPU, (32,), 3, {"float32": gpu_parts.Mode()}))
    assert [(row["mode"], row["size"]) for row in rows] == [("float32", 32)]
    assert 0 < rows[0]["p50_ms"] <= rows[0]["p95_ms"]


@pytest.mark.parametrize("part", [gpu_parts.forward_part, gpu_parts.step_part])
def test_sides_are_compared(part, monkeypatch):
    monkeypatch.setattr(gpu_parts.networks, "THEIRS", {"unet": gpu_parts.networks.THEIRS["unet"]})
    monkeypatch.setattr(gpu_parts.networks, "WIDTHS", {"resnet18": gpu_parts.networks.WIDTHS["resnet18"]})
    (row,) = part(CPU, 2, 32, 1, ("float32",))
    assert (row["variant"], row["backbone"], row["mode"]) == ("unet", "resnet18", "float32")
    assert row["ours_ms"] > 0 and row["smp_ms"] > 0 and row["times_faster"] > 0


def test_the_page_shows_figures_and_reasons(tmp_path):
    parts = {
        "latency": {
            "rows": [{"mode": "bf16", "size": 256, "p50_ms": 1.5, "p95_ms": 2.5}],
            "note": "stopped after 90 s",
        },
        "forward": {"rows": [], "note": "failed: RuntimeError: no memory"},
        "loop": {"rows": [{"side": "ours", "workers": 8, "images_per_second": 900.5}], "note": ""},
    }
    hardware = {"devices": ["A", "A"], "cores": 16, "torch": "2", "cuda": "13"}
    results = {"hardware": hardware, "seconds": 480.0, "parts": parts}
    (tmp_path / gpu_page.RESULTS).write_text(json.dumps(results))
    gpu_page.write_page(tmp_path)
    text = (tmp_path / gpu_page.PAGE).read_text()
    assert "within 480 s on A, A, 16 processor cores" in text and "| bf16 | 256 | 1.5 | 2.5 |" in text
    assert "(stopped after 90 s)" in text and "(failed: RuntimeError: no memory)" in text and "900.5" in text
    assert "(left out: no data was named (`DATA=folder`))" in text
    assert (tmp_path / gpu_page.PLOT).stat().st_size > 10_000
