"""Another library's checkpoint to one of ours: `hub-unets convert CHECKPOINT OUT --size 256`.

CHECKPOINT is a Unet or UnetPlusPlus of segmentation-models-pytorch: a folder of its save_pretrained, or a file of a
state dict. At sides that are multiples of 32 the logits are equal.
"""

import argparse

import transformers

from hub_unets.hub_repos.conversion.smp_checkpoint import read_smp_checkpoint
from hub_unets.hub_repos.conversion.smp_model import converted_model, converted_processor
from hub_unets.hub_repos.repository.folders import replaced
from hub_unets.training.errors import about_input, run_command


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets convert", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of smp's save_pretrained, or a file of a state dict")
    parser.add_argument("out", help="folder to write, absent or empty")
    parser.add_argument("--size", type=int, required=True, help="pixels of a side that images are resized to")
    parser.add_argument("--encoder", help="smp's name of the encoder, which a file does not tell: resnet34")
    parser.add_argument("--labels", nargs="+", help="names of the labels, the background's first")
    parser.add_argument("--image_mean", nargs=3, type=float, help="of each channel; default: the encoder's")
    parser.add_argument("--image_std", nargs=3, type=float, help="of each channel; default: the encoder's")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    checkpoint = read_smp_checkpoint(arguments.checkpoint, arguments.encoder)
    processor = converted_processor(checkpoint, arguments.size, arguments.image_mean, arguments.image_std)
    with replaced(arguments.out, lambda folder: False, "conversion") as staged:
        with about_input():
            model = converted_model(checkpoint, arguments.labels)
        model.save_pretrained(staged)
        processor.save_pretrained(staged)
    print(_summary(checkpoint, model, processor, arguments.out))


def _summary(checkpoint, model, processor, out):
    config = model.config
    lines = [
        f"Converted: {out}, {config.model_type} on {config.backbone}, {len(checkpoint.tensors)} tensors, "
        f"labels {', '.join(config.id2label.values())}; logits are smp's at multiples of 32 pixels.",
        f"Pixels are normalised by mean {list(processor.image_mean)} and deviation {list(processor.image_std)}: if it "
        "was trained with others, give --image_mean and --image_std.",
    ]
    if checkpoint.assumed:
        lines.append("A file does not tell how its decoder interpolates or what follows the logits: smp's defaults.")
    lines.append(f"Next: hub-unets evaluate {out} DATA, predict, or train with --start_from {out}.")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
