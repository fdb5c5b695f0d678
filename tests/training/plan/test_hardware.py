"""The memory that may be taken."""

from hub_unets.training.plan.hardware import free_memory, look_at_hardware
from hub_unets.training.settings.run_arguments import RunArguments


def test_a_containers_limit_holds(tmp_path):
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    limit.write_text("5000000\n")
    usage.write_text("2000000\n")
    assert free_memory([(str(limit), str(usage))]) == 3_000_000
    limit.write_text("max\n")
    machine = free_memory([(str(limit), str(usage))])
    assert machine > 3_000_000
    assert free_memory([(str(tmp_path / "none"), str(usage))]) > 3_000_000


def test_in_words(tmp_path):
    hardware = look_at_hardware(RunArguments(output_dir=str(tmp_path), precision="bf16", use_cpu=True))
    assert (hardware.device, hardware.precision, hardware.processes) == ("cpu", "bf16", 1)
    assert "cpu" in hardware.text and "GiB free, computes in bf16" in hardware.text
