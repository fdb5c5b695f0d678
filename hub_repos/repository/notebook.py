"""notebook.ipynb, which the Hub opens in Colab and Kaggle: install, load, predict, show."""

import json

NOTEBOOK = "notebook.ipynb"
PACKAGES = "torch torchvision timm transformers pillow"
ABOUT = """# {title}

Loads the model from its repository and marks one image. For research only: not a medical device, not for diagnosis,
treatment or any decision about a patient. The card has the figures, the limits and the terms of use."""
LOAD = """{where}import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import cached_file

processor = AutoImageProcessor.from_pretrained({arguments}, trust_remote_code=True)
model = AutoModel.from_pretrained({arguments}, trust_remote_code=True).eval()"""
PREDICT = """path = cached_file(filename="{example}", path_or_repo_id={arguments})  # or a file of yours
image = Image.open(path).convert("RGB")
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt").to(model.dtype))
sizes = [(image.height, image.width)]
mask = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes, images=[image])[0]
print(f"{(mask > 0).float().mean():.1%} of the image is marked")"""
VALUES = {  # how the lines of PREDICT read for a network whose images do not become RGB
    'image = Image.open(path).convert("RGB")': "values = processor.read(path)  # height x width x channels, in 0..1",
    "processor(image, ": "processor(values, do_rescale=False, ",
    "(image.height, image.width)": "values.shape[:2]",
    ", images=[image]": "",  # the view is one of RGB frames
}
FIRST_CHANNEL = """image = Image.fromarray((255 * values[..., 0]).astype("uint8")).convert("RGB")  # its first channel
"""
SHOW = """light = Image.fromarray((mask > 0).numpy().astype("uint8") * 128)
marked = Image.composite(Image.new("RGB", image.size, (0, 220, 90)), image, light)
both = Image.new("RGB", (2 * image.width, image.height))
both.paste(image, (0, 0))
both.paste(marked, (image.width, 0))
both"""
HERE = "from pathlib import Path\n\nMODEL = str(Path.cwd())  # the folder that this notebook lies in\n\n"


def notebook_text(title, repo_id=None, revision=None, example="example.png", takes_rgb=True):
    """The text of notebook.ipynb, nbformat 4.5.

    Args:
        title: the card's.
        repo_id, revision: what it loads; None is the folder that it lies in.
        example: the file of the repository that it marks.
        takes_rgb: whether images become RGB.
    """
    predict, show = PREDICT.replace("{example}", example), SHOW
    if not takes_rgb:
        show = FIRST_CHANNEL + SHOW
        for line, of_values in VALUES.items():
            predict = predict.replace(line, of_values)
    arguments = load_arguments(repo_id, revision)
    load = LOAD.format(where="" if repo_id else HERE, arguments=arguments)
    cells = [
        cell("about", "markdown", ABOUT.format(title=title)),
        cell("install", "code", f"%pip install -q {PACKAGES}"),
        cell("load", "code", load),
        cell("predict", "code", predict.replace("{arguments}", arguments)),
        cell("show", "code", show),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def load_arguments(repo_id=None, revision=None):
    """What a snippet hands to `from_pretrained`; without a repository, MODEL for the reader to fill in."""
    return ", ".join([f'"{repo_id}"' if repo_id else "MODEL", *([f'revision="{revision}"'] if revision else [])])


def cell(name, kind, text):
    """A cell as nbformat has it: `name` is its id."""
    outputs = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {}, **outputs, "source": text.splitlines(keepends=True)}
