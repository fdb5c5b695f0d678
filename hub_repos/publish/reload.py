"""The logits of a commit on the Hub, loaded as a stranger would; push runs this in a separate process, `python -I`.

Usage: reload.py REPO_ID COMMIT INPUT.npy OUTPUT.npy
"""

import sys


def main(repo_id, commit, pixels, output):
    sys.modules["hub_unets"] = None  # as if the project were not installed
    import numpy as np
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    model, info = AutoModel.from_pretrained(repo_id, revision=commit, trust_remote_code=True, output_loading_info=True)
    if wrong := {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}:
        sys.exit(f"the weights do not fit the code: {wrong}")
    with torch.inference_mode():
        np.save(output, model.eval()(torch.from_numpy(np.load(pixels))).logits.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
