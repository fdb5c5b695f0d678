"""The memory that may be taken."""

from hub_unets.training.plan.hardware import free_memory, look_at_hardware
from hub_unets.training.settings.run_arguments import RunArguments


def test_a_containers_limit_holds(tmp_path):
    limit, usage, statistics = tmp_path / "limit", tmp_path / "usage", tmp_path / "statistics"
    group = [tuple(map(str, (limit, usage, statistics)))]
    limit.write_text("5000000\n")
    usage.write_text("2000000\n")
    statistics.write_text("anon 1400000\n")
    assert free_memory(group) == 3_000_000
    statistics.write_text("anon 1400000\ninactive_file 500000\nactive_file 100000\n")  # files that were read
    assert free_memory(group) == 3_600_000
    statistics.write_text("inactive_file 7\nactive_file 7\ntotal_inactive_file 300000\ntotal_active_file 50000\n")
    assert free_memory(group) == 3_350_000
    limit.write_text("max\n")
    assert free_memory(group) > 3_600_000
    assert free_memory([(str(tmp_path / "none"), str(usage), str(statistics))]) > 3_600_000


def test_in_words(tmp_path):
    hardware = look_at_hardware(RunArguments(output_dir=str(tmp_path), precision="bf16", use_cpu=True))
    assert (hardware.device, hardware.precision, hardware.processes) == ("cpu", "bf16", 1)
    assert "cpu" in hardware.text and "GiB free, computes in bf16" in hardware.text
