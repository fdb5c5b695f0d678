"""Checkpoint to Hub repository: `hub-unets build CHECKPOINT OUT [--onnx] [--two-channels]`.

The repository holds weights, config, processor, and flat copies of only the code that the variant needs; it loads with
`trust_remote_code=True` where this project is not installed. Two builds of one checkpoint are byte-identical.
"""

import argparse

import transformers

from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.export import ONNX
from hub_unets.training.errors import run_command


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets build", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a finished run")
    parser.add_argument("out", help="folder to write the repository to")
    parser.add_argument("--onnx", action="store_true", help=f"also write the network as {ONNX}")
    parser.add_argument(
        "--two-channels", action="store_true", help="logits (0, z) of a binary head, for scripts that take argmax(1)"
    )
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    build(arguments.checkpoint, arguments.out, onnx=arguments.onnx, two_channels=arguments.two_channels)
    print(f"Repository: {arguments.out}")
    print(
        "Next: from transformers import pipeline; "
        f'pipeline("image-segmentation", model="{arguments.out}", trust_remote_code=True)("image.jpg")'
    )


if __name__ == "__main__":
    run_command(main)
