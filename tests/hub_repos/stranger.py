"""Run by a test in a process of its own, `python -I`: loads a built repository as a stranger would.

Usage: isolated.py REPOSITORY INPUT.npy IMAGE OUTPUT.npz RESAVED [REVISION]
Writes the logits of every Auto class and the pipeline's union mask; saves the model again to RESAVED.
"""

import importlib.abc
import json
import sys

PROJECT = {"configuration", "modeling", "training", "hub_repos", "tests"}


class Hidden(importlib.abc.MetaPathFinder):
    """The project is not installed here, even where it is."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in PROJECT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return


def main(repository, pixels, image, output, resaved, revision="main"):
    sys.meta_path.insert(0, Hidden())
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(1)
    where = {"revision": revision, "trust_remote_code": True}
    inputs = torch.from_numpy(np.load(pixels))
    results = {}
    for name in ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation"):
        model, info = getattr(transformers, name).from_pretrained(repository, output_loading_info=True, **where)
        wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
        assert not wrong, f"{name}: {json.dumps(wrong)}"
        with torch.inference_mode():
            results[name] = model.eval()(inputs).logits.numpy()
    config = transformers.AutoConfig.from_pretrained(repository, **where)
    processor = transformers.AutoImageProcessor.from_pretrained(repository, **where)
    segment = transformers.pipeline("image-segmentation", model=repository, **where)
    assert type(segment).__name__ == "UNetImageSegmentationPipeline"
    results["pixel_values"] = processor(image)["pixel_values"].numpy()
    single = segment(image)
    from_pil, batch = segment(transformers.image_utils.load_image(image)), segment([image, image], batch_size=2)
    assert [len(entries) for entries in (from_pil, *batch)] == [len(single)] * 3
    assert all(entry["label"] in config.id2label.values() and 0 <= entry["score"] <= 1 for entry in single)
    results["union"] = sum((np.asarray(entry["mask"]) > 0).astype(np.uint8) for entry in single)
    model.save_pretrained(resaved)
    processor.save_pretrained(resaved)
    np.savez(output, **results)
    assert not PROJECT & {name.split(".")[0] for name in sys.modules}


if __name__ == "__main__":
    main(*sys.argv[1:])
