"""Run by a test in a process of its own, `python -I`: what a stranger gets from a commit on the Hub.

Usage: stranger.py REPO_ID COMMIT IMAGE OUTPUT.npz
Writes pixel_values, the logits, and the union of the pipeline's entries.
"""

import sys


def main(repo_id, commit, image, output):
    sys.modules["hub_unets"] = None  # the project is not installed here, even where it is
    import numpy as np
    import torch
    from transformers import AutoImageProcessor, AutoModel, pipeline

    torch.set_num_threads(1)
    options = {"revision": commit, "trust_remote_code": True}
    pixels = AutoImageProcessor.from_pretrained(repo_id, **options)(image)["pixel_values"]
    with torch.inference_mode():
        logits = AutoModel.from_pretrained(repo_id, **options).eval()(pixels).logits
    entries = pipeline("image-segmentation", model=repo_id, **options)(image)
    union = sum(np.asarray(entry["mask"]) > 0 for entry in entries)
    np.savez(output, pixel_values=pixels.numpy(), logits=logits.numpy(), union=union)


if __name__ == "__main__":
    main(*sys.argv[1:])
