"""results.json to speed.md and speed.png: `python -m hub_unets.benchmarks.page [FOLDER]`."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from hub_unets.benchmarks import loop_profile, loops
from hub_unets.training.records.markdown import table

RESULTS, MINUTES, PAGE, PLOT = "results.json", "minutes.json", "speed.md", "speed.png"


def write_page(folder):
    """Write speed.md and speed.png beside a folder's results.json."""
    folder = Path(folder)
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    draw(results, folder / PLOT)
    parts = [introduction, inference, networks, training, loop_parts, growth]
    sections = [part(results) for part in parts]
    if (folder / MINUTES).is_file():
        sections.insert(4, minutes(json.loads((folder / MINUTES).read_text(encoding="utf-8"))))
    (folder / PAGE).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def introduction(results):
    machine, data = results["hardware"], results["data"]
    return (
        f"# Speed\n\n"
        f"Made by `{results['command']}` (pictures and this page from `results.json` by `python -m "
        f"hub_unets.benchmarks.page`) on {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads for "
        f"either side, torch {machine['torch']}; seed 0; images of {data['name']}, split {data['split']}.\n\n"
        'The sides take turns (A B A B ...). Milliseconds are medians over rounds; "times faster" is the median over '
        "rounds of the other side's time over this one's in the same round, so that a busy machine slows both. "
        "Absolute milliseconds hold for an idle machine only.\n\n"
        "What needs a GPU is on [a page of its own](gpu.md), made by `make bench-gpu` where one is at hand.\n\n"
        f"![Speed]({PLOT})"
    )


def inference(results):
    record = results["inference"]
    size = f"{record['size']['height']} x {record['size']['width']}"
    text = (
        f"## From JPEG bytes to a mask at the original size\n\n"
        f"U-Net on {record['backbone']} at {size} pixels, weights {record['weights']}. The usual way is "
        "segmentation-models-pytorch's Unet with its default decoder, eager float32: Pillow decodes, albumentations "
        "resizes and normalises, logits are upsampled and thresholded. Decode, resize and mask are timed on both "
        f"sides. Dice: mean over {record['images']} validation images, per image at original size.\n\n"
    )
    batches = list(record["milliseconds"])
    header = [title for batch in batches for title in (f"batch {batch}: ms an image", "times faster")]
    rows = []
    for name in record["milliseconds"][batches[0]]:
        times = [record["milliseconds"][batch][name] for batch in batches]
        masks = record["masks"].get(name)
        quality = [masks["dice"], masks["dice_with_plain"], masks["least_dice_with_plain"]] if masks else ["–"] * 3
        rows.append([name, *(value for timing in times for value in (timing["ms"], timing["times_faster"])), *quality])
    return text + table(["path", *header, "Dice", "Dice with plain", "least"], rows)


def networks(results):
    rows = []
    for row in results["networks"]:
        for name, times in row["forward"].items():
            step = row.get("training_step", {}).get(name)
            rows.append([
                row["variant"], row["backbone"], row["size"], name, row["gmacs"][name], times["ms"],
                times["times_faster"] if len(row["forward"]) > 1 else "–", row["forward_peak_mb"][name],
                step["ms"] if step else "–", step["times_faster"] if step and len(row["forward"]) > 1 else "–",
                row.get("training_peak_mb", {}).get(name, "–"),
            ])  # fmt: skip
    header = [
        "variant", "backbone", "px", "side", "GMACs", "forward ms", "times faster", "peak MB", "step ms",
        "times faster", "peak MB",
    ]  # fmt: skip
    worst = max(
        (row["largest_difference"] for row in results["networks"] if "largest_difference" in row),
        default=0,
    )
    return (
        "## Networks\n\nFloat32, eager, batch 1 forward, batch 4 a training step (forward and backward). "
        "segmentation-models-pytorch's networks hold our weights, with bilinear upsampling and the same decoder "
        f"widths; the logits differ by {worst:.1g} of the largest at most. GMACs of one image in convolutions and "
        "matrix products; ours are fewer where a 1x1 convolution stands before the upsampling instead of a wider 3x3 "
        "one behind it. Peak MB is what the call adds to the process.\n\n" + table(header, rows)
    )


def training(results):
    record = results["training"]
    rows = [
        [part, name, figures["images_per_second"], figures["times_faster"]]
        for part in ("loader", "loop")
        for name, figures in record[part].items()
    ]
    starts = [[name, seconds] for name, seconds in results["import_seconds"].items()]
    return (
        f"## Training\n\nOne process, batch {record['batch_size']}, {record['size']} px, recipe `unet_mobilenetv2`'s "
        "augmentation. Ours: decoded and resized once into an Arrow cache, bfloat16, channels last, freed memory "
        "kept. Plain: JPEG and mask decoded and resized in each epoch, float32, PyTorch's defaults. Same network, "
        "losses and optimiser.\n\n"
        + table(["part", "side", "images a second", "times faster"], rows)
        + "\n\nStarting, processor seconds, medians of whole processes. Of the imports of our published code PyTorch "
        "takes 29 % and its compiler (`torch._dynamo`), which torchvision and transformers import whether or not it "
        "is used, 27 % more (`python -X importtime`); `predict` adds its model, one image and its tables:\n\n"
        + table(["process", "seconds"], starts)
    )


def minutes(record):
    """The minutes to accuracy of each side: means over seeds, and what each seed took."""
    terms = record["terms"]
    machine = terms["hardware"]
    runs = {}
    for run in record["runs"]:
        runs.setdefault(run["side"], []).append(run)
    targets = sorted({target for run in record["runs"] for target in run["minutes"]}, key=float)
    rows = [
        [
            f"`{side}`", ", ".join(str(run["seed"]) for run in sides),
            *(_minutes_to(target, sides) for target in targets),
            ", ".join(f"{run['best_dice']:.4f} of {run['epochs']}" for run in sides),
        ]
        for side, sides in runs.items()
    ]  # fmt: skip
    return (
        f"## Minutes to accuracy\n\nMade by `hub-unets bench-minutes` on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, torch {machine['torch']}: the whole command's wall time until the validation "
        f"Dice of {terms['data']} first exceeds a target. Recipe `{terms['recipe']}`, "
        f"{terms['epochs'] or 'its'} epochs. Plain: segmentation-models-pytorch's Unet with the same encoder, "
        "weights, rates, augmentation and epochs, float32, its Dice at the network's size "
        "(ours at the images' own). The sides take turns. A dash is a target that no epoch reached; a plain run ends "
        "with the last target.\n\n"
        + table(["side", "seeds", *(f"minutes to {target}" for target in targets), "best Dice, of epochs"], rows)
    )


def _minutes_to(target, runs):
    times = [run["minutes"].get(target) for run in runs]
    each = ", ".join("–" if passed is None else f"{passed:.1f}" for passed in times)
    return each if None in times or len(times) == 1 else f"{sum(times) / len(times):.1f} ({each})"


def loop_parts(results):
    """What the training step's time consists of; where an older record has no profile, how to make one."""
    title = "## What the training step's time consists of\n\n"
    command = "`python -m hub_unets.benchmarks.loop_profile`"
    if "step_profile" not in results:
        return f"{title}{command} tells; it was not measured with the rest of this page."
    ours, plain = (next(iter(results["step_profile"].values()))[side] for side in (loops.OURS, loops.PLAIN))
    convolution, norm = (plain[kind] / ours[kind] for kind in ("convolution", "batch norm"))
    share = ours["convolution"] / sum(ours.values())
    return (
        f"{title}Made by {command} (torch.profiler, an operator's own time). On one thread convolutions are "
        f"{share:.0%} of our step; bfloat16 makes them {convolution:.2f} times as fast as float32, and batch norm "
        f"{norm:.2f} times. "
        "Nothing else can bring the loop beyond the limit over each table. The optimiser, fused, and the loss are "
        "small; the moving average is one multi-tensor call.\n\n" + loop_profile.text(results["step_profile"])
    )


def growth(results):
    rows = [[row["size"], row["batch"], row["ms"], row["peak_mb"]] for row in results["growth"]]
    loader, evaluation = (
        [[row["images"], row["added_mb"]] for row in results[part]] for part in ("loader_memory", "evaluation_memory")
    )
    return (
        "## Growth\n\nU-Net's forward in float32 against side and batch:\n\n"
        + table(["px", "batch", "ms", "peak MB"], rows)
        + "\n\nMemory that an epoch of the loader adds, files' pages left out (64 px, batch 8, images repeated):\n\n"
        + table(["images", "added MB"], loader)
        + "\n\nMemory that scoring adds at its peak, summary and tables included (U-Net of width 4, 64 px, images "
        "repeated; beyond 1,000 their scores):\n\n" + table(["images", "added MB"], evaluation) + data_growth(results)
    )


def data_growth(results):
    """A table of the steps before a training; empty where an older record has none."""
    if "data_seconds" not in results:
        return ""
    rows = [list(row.values()) for row in results["data_seconds"]]
    text = "\n\nProcessor seconds before a training, of a folder of frames and masks (files repeated by links):\n\n"
    return text + table(["rows", "load", "split", "leak check"], rows)


def draw(results, path):
    """Four panels: inference, forward against smp, training, growth."""
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    _draw_inference(axes[0, 0], results["inference"]["milliseconds"])
    pairs = [row for row in results["networks"] if "smp" in row["forward"]]
    names = [f"{row['variant']}, {row['backbone'].split('_')[0]}, {row['size']} px" for row in pairs]
    axes[0, 1].barh(names, [row["forward"]["ours"]["times_faster"] for row in pairs], color="tab:blue")
    axes[0, 1].axvline(1, color="black", linewidth=1)
    axes[0, 1].tick_params(axis="y", labelsize=7)
    axes[0, 1].invert_yaxis()
    axes[0, 1].set(title="Forward: smp's time over ours, same weights", xlabel="times faster")
    for shift, part in enumerate(("loader", "loop")):
        sides = results["training"][part]
        values = [figures["images_per_second"] for figures in sides.values()]
        bars = axes[1, 0].bar([position + 0.4 * shift for position in range(len(sides))], values, 0.38, label=part)
        axes[1, 0].bar_label(bars, fmt="%.3g")
    axes[1, 0].set_xticks([0.2, 1.2], list(results["training"]["loop"]))
    axes[1, 0].legend()
    axes[1, 0].set(title="Training", ylabel="images a second", yscale="log")
    points = [point for point in results["growth"] if point["batch"] == 1]
    for unit, label in (("ms", "milliseconds"), ("peak_mb", "peak MB")):
        values = [point[unit] or float("nan") for point in points]
        axes[1, 1].plot([point["size"] ** 2 / 1e6 for point in points], values, "o-", label=label)
    axes[1, 1].set(title="Growth of the forward, batch 1", xlabel="megapixels", xscale="log", yscale="log")
    axes[1, 1].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_inference(axis, milliseconds):
    names = list(next(iter(milliseconds.values())))
    for shift, (batch, times) in enumerate(milliseconds.items()):
        positions = [position + 0.4 * shift for position in range(len(names))]
        bars = axis.barh(positions, [times[name]["ms"] for name in names], 0.38, label=f"batch {batch}")
        axis.bar_label(bars, [f"{times[name]['times_faster']:.1f}x" for name in names])
    axis.set_yticks([position + 0.2 for position in range(len(names))], names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.legend()
    axis.set(title="JPEG to mask at original size", xlabel="milliseconds an image")


def main(argv=None):
    folder = ([*(sys.argv[1:] if argv is None else argv)] or [str(Path(__file__).parent)])[0]
    write_page(folder)
    print(Path(folder) / PAGE)


if __name__ == "__main__":
    main()
