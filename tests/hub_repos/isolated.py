"""Run by tests in a process of its own, `python -I`: loads built repositories as a stranger would.

Says its version of transformers; then each line that it reads is a load, [REPOSITORY, FOLDER] in JSON, answered with
an exit status. The libraries are imported once; each load is a fork, with fresh caches, that knows nothing of another.
FOLDER holds pixels.npy and image.png; a load adds found.npz (the logits of every Auto class, the gates' maps,
`pixel_values`, the pipeline's union mask), resaved/ (model and processor saved again) and printed.txt.
"""

import importlib.abc
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import timm  # noqa: F401
import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, pipeline

PROJECT = {"configuration", "modeling", "training", "hub_repos", "tests"}


class Hidden(importlib.abc.MetaPathFinder):
    """The project is not installed here, even where it is."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in PROJECT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return


def main():
    sys.meta_path.insert(0, Hidden())
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    print(transformers.__version__, flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            repository, folder = json.loads(line)
            load(repository, Path(folder))  # an error ends the fork alone
            break
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def load(repository, folder):
    with (folder / "printed.txt").open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    inputs, image = torch.from_numpy(np.load(folder / "pixels.npy")), str(folder / "image.png")
    results = {}
    for name in ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation"):
        model, info = getattr(transformers, name).from_pretrained(
            repository, trust_remote_code=True, output_loading_info=True
        )
        wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
        assert not wrong, f"{name}: {json.dumps(wrong)}"
        with torch.inference_mode():
            outputs = model.eval()(inputs, output_attentions=True)
        results[name] = outputs.logits.numpy()
    results |= {f"attentions.{index}": gate.numpy() for index, gate in enumerate(outputs.attentions or ())}
    config = AutoConfig.from_pretrained(repository, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(repository, trust_remote_code=True)
    segment = pipeline("image-segmentation", model=repository, trust_remote_code=True)
    assert type(segment).__name__ == "UNetImageSegmentationPipeline"
    results["pixel_values"] = processor(image)["pixel_values"].numpy()
    single = segment(image)
    from_pil, batch = segment(transformers.image_utils.load_image(image)), segment([image, image], batch_size=2)
    assert [len(entries) for entries in (from_pil, *batch)] == [len(single)] * 3
    assert all(entry["label"] in config.id2label.values() and 0 <= entry["score"] <= 1 for entry in single)
    results["union"] = sum((np.asarray(entry["mask"]) > 0).astype(np.uint8) for entry in single)
    model.save_pretrained(folder / "resaved")
    processor.save_pretrained(folder / "resaved")
    np.savez(folder / "found.npz", **results)
    assert not PROJECT & {name.split(".")[0] for name in sys.modules}


if __name__ == "__main__":
    main()
