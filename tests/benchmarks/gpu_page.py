"""gpu.json to gpu.md and gpu.png: `python -m hub_unets.benchmarks.gpu_page [FOLDER]`."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from hub_unets.training.records.markdown import table

RESULTS, PAGE, PLOT = "gpu.json", "gpu.md", "gpu.png"
TITLES = {
    "latency": "One image, from its pixels on the host to its logits (U-Net, MobileNetV2)",
    "forward": "Forward beside segmentation-models-pytorch, same weights: milliseconds an image, batch 16, 256 px",
    "step": "Forward and backward beside segmentation-models-pytorch: milliseconds an image, batch 16, 256 px",
    "loop": "The training loop with eight workers, batch 16, 256 px",
    "processes": "Training on one device and on all (DDP), batch 8 a device",
    "accuracy": "Minutes from the command's start until the validation Dice exceeds (recipe `unet_mobilenetv2`)",
}
LEFT_OUT = {"processes": "one device only", "accuracy": "no data was named (`DATA=folder`)"}


def write_page(folder):
    """Write gpu.md and gpu.png beside a folder's gpu.json."""
    folder = Path(folder)
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    draw(results["parts"], folder / PLOT)
    sections = [introduction(results), *(section(name, results["parts"].get(name)) for name in TITLES)]
    (folder / PAGE).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def introduction(results):
    machine = results["hardware"]
    return (
        f"# Speed on GPUs\n\nMade by `make bench-gpu` within {results['seconds']:.0f} s on "
        f"{', '.join(machine['devices'])}, {machine['cores']} processor cores, torch {machine['torch']}, CUDA "
        f"{machine['cuda']}. Every time ends when the device has done its work; medians, the sides in turns. bf16 and "
        f"fp16 are autocast, channels last.\n\n![Speed on GPUs]({PLOT})"
    )


def section(name, part):
    """A part's table, and why it is missing or cut short."""
    part = part or {"rows": [], "note": f"left out: {LEFT_OUT.get(name, 'not planned')}"}
    header = list(part["rows"][0]) if part["rows"] else []
    texts = [f"## {TITLES[name]}", f"({part['note']})" if part["note"] else ""]
    if part["rows"]:
        texts.append(
            table([title.replace("_", " ") for title in header], [list(row.values()) for row in part["rows"]])
        )
    return "\n\n".join(filter(None, texts))


def draw(parts, path):
    """Latency, the forward and the step beside smp's, and the loop; a part without rows stays empty."""
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    rows = {name: parts.get(name, {"rows": []})["rows"] for name in TITLES}
    labels = [f"{row['mode']}, {row['size']} px" for row in rows["latency"]]
    for key in ("p95_ms", "p50_ms"):
        axes[0, 0].barh(labels, [row[key] for row in rows["latency"]], label=key.replace("_", ", "))
    axes[0, 0].set(title="One image", xlabel="milliseconds")
    if labels:
        axes[0, 0].legend()
    for axis, name in ((axes[0, 1], "forward"), (axes[1, 0], "step")):
        labels = [f"{row['variant']}, {row['backbone'].split('_')[0]}, {row['mode']}" for row in rows[name]]
        axis.barh(labels, [row["times_faster"] for row in rows[name]])
        axis.axvline(1, color="black", linewidth=1)
        axis.tick_params(axis="y", labelsize=7)
        axis.set(title=f"{name.capitalize()}: smp's time over ours", xlabel="times faster")
    axes[1, 1].bar([row["side"] for row in rows["loop"]], [row["images_per_second"] for row in rows["loop"]])
    axes[1, 1].set(title="Training loop, eight workers", ylabel="images a second")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv=None):
    write_page(([*(sys.argv[1:] if argv is None else argv)] or [str(Path(__file__).parent)])[0])


if __name__ == "__main__":
    main()
