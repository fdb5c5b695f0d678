"""A Label Studio ML backend: `python -m hub_unets.hub_repos.annotate.label_studio MODEL [--port 9090]`.

It serves what `label-studio-ml start` serves, `label_studio_ml`'s own app, with a model's regions: polygons for a
<PolygonLabels>, brushed masks for a <BrushLabels>; where an interface has both, regions with a hole are brushed, as a
polygon can't say it. The score of a task is 1 - its uncertainty, so that Label Studio's uncertainty sampling, the
lowest score first, begins with the most uncertain images.
"""

import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import HfArgumentParser

from hub_unets.hub_repos.annotate.regions import Annotator, has_hole, outline
from hub_unets.modeling.images import height_and_width
from hub_unets.training.data.reading import read_image
from hub_unets.training.errors import UserError, run_command

INSTALL = "pip install 'label-studio-ml @ git+https://github.com/HumanSignal/label-studio-ml-backend'"
POLYGON, BRUSH = "PolygonLabels", "BrushLabels"


class Control(NamedTuple):
    """A tag of the labeling interface: its kind, name, the image's name, and its label for each of the model's."""

    kind: str
    name: str
    image: str
    labels: dict[str, str]


def prediction(annotator, image, controls):
    """Label Studio's prediction of an image: {"score", "result"}.

    Args:
        annotator: an Annotator.
        image: as `read_image` gives it.
        controls: the interface's Controls; regions whose label is in none of them are left out.
    """
    regions, uncertainty = annotator(image)
    result = []
    for region in regions:
        name = annotator.labels[region.label]
        control = _control(region, name, controls)
        if control is not None:
            result.append(_entry(region, height_and_width(image), control, control.labels[name]))
    return {"score": 1 - uncertainty, "result": result}


def _control(region, name, controls):
    """The Control that has the label, or None; of a polygon and a brush, the brush for a region with a hole."""
    able = {control.kind: control for control in controls if control.labels.get(name)}
    if len(able) > 1:
        return able[BRUSH if has_hole(region) else POLYGON]
    return next(iter(able.values()), None)


def _entry(region, size, control, label):
    """One region as Label Studio has it; points are in percent of the image."""
    kind, (height, width) = control.kind.lower(), size
    if control.kind == BRUSH:
        value = {"format": "rle", "rle": _run_lengths(region, width, height)}
    else:
        value = {"points": (outline(region) * 100 / (width, height)).tolist(), "closed": True}
    return {
        "from_name": control.name,
        "to_name": control.image,
        "type": kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": region.score,
        "value": {**value, kind: [label]},
    }


def _run_lengths(region, width, height):
    from label_studio_sdk.converter.brush import mask2rle

    x, y, *_ = region.box
    rows, columns = region.mask.shape
    pixels = np.zeros((height, width), np.uint8)
    pixels[y : y + rows, x : x + columns][region.mask] = 255
    return mask2rle(pixels)


def backend(annotator, version):
    """The class that label_studio_ml serves; it makes an object of it for each request.

    Args:
        annotator: an Annotator.
        version: Label Studio asks again for the predictions of tasks that have those of another one.
    """
    from label_studio_ml.model import LabelStudioMLBase

    class Backend(LabelStudioMLBase):
        def setup(self):
            self.set("model_version", version)

        def predict(self, tasks, context=None, **kwargs):
            controls = _controls(self, annotator.labels.values())
            column = next(tag.value_name for tag in self.label_interface.objects if tag.name == controls[0].image)
            return [self._prediction(task, column, controls) for task in tasks]

        def _prediction(self, task, column, controls):
            path = self.get_local_path(task["data"][column], task_id=task.get("id"))
            image = read_image({"bytes": None, "path": path}, f"task {task.get('id')}", annotator.processor)
            return {"model_version": version, **prediction(annotator, image, controls)}

    return Backend


def _controls(model, names):
    """The labeling interface's Controls that have one of the model's labels.

    Raises:
        UserError: there is none.
    """
    controls = []
    for tag in model.label_interface.controls:
        if tag.tag in (POLYGON, BRUSH):
            found = model.build_label_map(tag.name, list(names))
            labels = {name: found.get(name, found.get(name.lower())) for name in names}
            if any(labels.values()):
                controls.append(Control(tag.tag, tag.name, tag.to_name[0], labels))
    if not controls:
        raise UserError(
            f"the labeling interface needs a <{POLYGON}> or <{BRUSH}> with one of the model's labels, "
            f'{", ".join(names)}: add <Label value="NAME"/>, or predicted_values="NAME" to a label of another name.'
        )
    return controls


def version_of(name, model):
    """The model's folder or repository, and a digest of its weights: those of a new training are another version."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{Path(name).name}-{digest.hexdigest()[:8]}"


@dataclass
class ServerArguments:
    """Serve a model's regions to Label Studio."""

    host: str = field(default="localhost", metadata={"help": "Address to listen on; 0.0.0.0 is every one."})
    port: int = field(default=9090, metadata={"help": "Port to listen on."})
    revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})


def main(argv=None):
    parser = HfArgumentParser(ServerArguments, usage="python -m %(prog)s MODEL [--port 9090] ...")
    parser.add_argument("model", help="Folder of a run or of a built repository, or Hub id.")
    arguments, positional = parser.parse_args_into_dataclasses(argv)
    if importlib.util.find_spec("label_studio_ml") is None:
        raise UserError(f"Label Studio's backends need label-studio-ml: {INSTALL}")
    annotator = Annotator(positional.model, arguments.trust_remote_code, arguments.revision)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("MODEL_DIR", folder)  # of label_studio_ml's cache.db
        from label_studio_ml.api import init_app

        app = init_app(backend(annotator, version_of(positional.model, annotator.model)))
        app.run(host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    run_command(main)
