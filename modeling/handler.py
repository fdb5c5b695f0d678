"""What a Hugging Face Inference Endpoint runs: an image in a request to the entries of the pipeline, as JSON.

huggingface-inference-toolkit finds `handler.py`, makes one `EndpointHandler(folder)`, and calls it with every body: an
image file comes as `{"inputs": PIL image}`, JSON as what it says. The text of whatever is raised becomes an answer of
status 400.
"""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # of bodies that the toolkit takes; EPS would run a program
MAX_PIXELS = 25_000_000  # a segmentation holds about 60 bytes a pixel
FRACTIONS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")


class EndpointHandler:
    """Answers requests; it keeps nothing of them, so that several threads may call it at once.

    Args:
        path: the repository's folder; "" is the current one.
    """

    def __init__(self, path=""):
        folder = str(Path(path).resolve())
        self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, data):
        """The entries of one image, or of each image of a list.

        Args:
            data: `inputs` and, if need be, `parameters`. `inputs` is a PIL image, the bytes of an image file, base64
                text of them (a `data:` prefix may stand before it), or a list of these. `parameters` are those of the
                Hub's image-segmentation API: `threshold` (entries that score below it are dropped; default: the
                processor's `score_threshold`),
                `mask_threshold` (of a binary head; default: the processor's), `overlap_mask_area_threshold` (without
                effect: entries never overlap) and `subtask` (`"instance"` alone). Numbers may be texts, as a query
                string gives them.

        Returns:
            list of dictionaries, one for each connected region: `label`, `score` in 0..1 and `mask`, base64 text of a
            PNG of 0 and 255 at the upright image's size. Their union is the processor's semantic mask. For a list of
            images, a list of such lists.

        Raises:
            ValueError: the request can't be answered; says which part, and why.
        """
        inputs, options = self._read(data)
        if isinstance(inputs, (list, tuple)):
            return [self._segment(decode(one, f"inputs[{number}]"), options) for number, one in enumerate(inputs)]
        return self._segment(decode(inputs, "inputs"), options)

    def _read(self, data):
        """A request's inputs, and its parameters as `post_process_instance_segmentation` takes them."""
        if not isinstance(data, dict):
            raise ValueError(f"a request must map `inputs` to an image, got {_shown(data)}.")
        _refuse_unknown(data, ("inputs", "parameters"), "a request")
        inputs, parameters = data.get("inputs"), data.get("parameters")
        if inputs is None or (isinstance(inputs, (list, tuple)) and not inputs):
            raise ValueError("inputs is missing: give an image, base64 text of one, or a list of them.")
        if not isinstance(parameters, (dict, type(None))):
            raise ValueError(f"parameters must map names to values, got {_shown(parameters)}.")
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        _refuse_unknown(given, (*FRACTIONS, "subtask"), "parameters")
        if given.pop("subtask", "instance") != "instance":
            raise ValueError("subtask must be 'instance': the union of its entries is the semantic mask.")
        if "mask_threshold" in given and not self.model.config.binary_head:
            raise ValueError("mask_threshold is for two classes; of several, each pixel takes the most probable one.")
        return inputs, {name: _fraction(name, value) for name, value in given.items()}

    @torch.inference_mode()
    def _segment(self, image, options):
        outputs = self.model(**self.processor(image).to(self.model.device))
        found = self.processor.post_process_instance_segmentation(
            outputs, target_sizes=[(image.height, image.width)], **options
        )[0]
        segmentation = found["segmentation"].numpy()
        return [
            {
                "label": self.model.config.id2label[one["label_id"]],
                "score": one["score"],
                "mask": encode(segmentation == one["id"]),
            }
            for one in found["segments_info"]
        ]


def decode(value, name):
    """What a request holds as an image, PIL or bytes or base64 text, to an upright PIL image.

    Raises:
        ValueError: it is none, is broken, or has too many pixels; `name` is what the error calls it.
    """
    content = _from_base64(value, name) if isinstance(value, str) else value
    if not isinstance(content, (bytes, bytearray, Image.Image)):
        raise ValueError(f"{name} must be an image file's bytes or base64 text of them, got {_shown(content)}.")
    try:
        image = content if isinstance(content, Image.Image) else Image.open(BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}; scale it down")
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image of the formats {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow raises errors of many classes for broken files
        raise ValueError(f"{name} can't be read as an image: {error}.") from error


def encode(mask):
    """A boolean mask H x W to base64 text of a PNG of 0 and 255."""
    png = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def _from_base64(text, name):
    if text.lstrip()[:8].lower().startswith(("http://", "https://", "ftp://", "file://")):
        raise ValueError(f"{name} is an address: nothing is fetched for a request, send the image itself.")
    header, comma, rest = text.partition(",")
    if comma and not (header.startswith("data:") and header.endswith(";base64")):
        raise ValueError(f"{name} must be base64 text, or begin with data:image/...;base64, got {_shown(text)}.")
    try:
        return base64.b64decode("".join((rest if comma else text).split()), validate=True)  # lines may be broken
    except ValueError as error:
        raise ValueError(f"{name} is not base64 text of an image ({error}): {_shown(text)}.") from error


def _fraction(name, value):
    """A number in 0..1, or its text."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number in 0..1, got {_shown(value)}.")
    return number


def _refuse_unknown(given, known, owner):
    for name in given:
        if name not in known:
            raise ValueError(f"{owner} can't hold {_shown(name)}; it may hold {', '.join(known)}.")


def _shown(value):
    """The start of a value as an error shows it: a request may be megabytes long."""
    text = repr(value[:60] if isinstance(value, (str, bytes, bytearray, list)) else value)
    return text if len(text) <= 70 else f"{text[:60]}..."
