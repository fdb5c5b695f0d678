"""What a Hugging Face Inference Endpoint runs: an image in a request to the entries of the pipeline, as JSON.

huggingface-inference-toolkit finds `handler.py`, makes one `EndpointHandler(folder)`, and calls it with every body: an
image file comes as `{"inputs": PIL image}`, JSON as its decoded value. The text of any error becomes an answer of
status 400.
"""

import base64
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
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
                text of them (a `data:` prefix may stand before it), or a list of these; where images do not become
                RGB, the file may also be a TIFF of any channels, a NumPy or a DICOM file. `parameters` are those of
                the Hub's image-segmentation API: `threshold` (entries that score below it are dropped; default: the
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
            return [self._segment(image, f"inputs[{number}]", options) for number, image in enumerate(inputs)]
        return self._segment(inputs, "inputs", options)

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
        options = {name: _fraction(name, value) for name, value in given.items()}
        options.pop("overlap_mask_area_threshold", None)
        return inputs, options

    @torch.inference_mode()
    def _segment(self, value, name, options):
        processor = self.processor
        image = processor.read(decode(value, name)) if processor.takes_rgb else decode_values(value, name, processor)
        inputs = processor(image, **processor.read_options)
        inputs = inputs.to(self.model.device, self.model.dtype)  # saved in half precision, perhaps
        result = processor.post_process_instance_segmentation(
            self.model(**inputs), target_sizes=[_height_and_width(image)], images=[image], **options
        )[0]
        segmentation = result["segmentation"].numpy()
        encode = MaskPng(*segmentation.shape)
        entries = []
        for segment in result["segments_info"]:
            _, top, _, height = segment["bbox"]
            mask = encode(segmentation[top : top + height] == segment["id"], top)
            label = self.model.config.id2label[segment["label_id"]]
            entries.append({"label": label, "score": segment["score"], "mask": mask})
        return entries


def decode(value, name):
    """An image of a request (PIL image, bytes or base64 text) as a PIL image that is read whole.

    Raises:
        ValueError: it is no image, is broken, or has too many pixels; the error calls it `name`.
    """
    content = _content(value, name)
    try:
        image = content if isinstance(content, Image.Image) else Image.open(BytesIO(content), formats=FORMATS)
        if image.format == "EPS":  # opened by the caller
            raise UnidentifiedImageError
        _require_size(image)
        image.load()
        return image
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image of the formats {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow raises errors of many classes for broken files
        raise ValueError(f"{name} can't be read as an image: {error}.") from error


def decode_values(value, name, processor):
    """As `decode`, where images do not become RGB: what the processor reads, float32 H x W x C."""
    content = _content(value, name)
    try:
        if isinstance(content, Image.Image):
            _require_size(content)
        image = processor.read(content, MAX_PIXELS * processor.num_channels)
        _require_size(image)
        return image
    except ValueError as error:
        raise ValueError(f"{name} can't be read as an image: {error}") from error


def _content(value, name):
    """An image of a request as bytes or PIL image."""
    content = _from_base64(value, name) if isinstance(value, str) else value
    if not isinstance(content, (bytes, bytearray, Image.Image)):
        raise ValueError(f"{name} must be an image file's bytes or base64 text of them, got {_shown(content)}.")
    return content


def _height_and_width(image):
    """Of a PIL image or an array H x W x C; a file that is loaded by its path can't import from its siblings."""
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def _require_size(image):
    height, width = _height_and_width(image)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}; scale it down")


class MaskPng:
    """Encodes masks of one size as base64 text of PNGs of 0 and 255.

    Most rows of a region's mask are black: those are compressed once, for all masks.

    Args:
        height, width: of the whole image in pixels.
    """

    def __init__(self, height, width):
        self.height, self.width, self.blank = height, width, {}

    def __call__(self, rows, top=0):
        """The text of a mask whose rows from `top` on are `rows`, bool h x width, and else black."""
        band = np.zeros((len(rows), self.width + 1), np.uint8)  # a row begins with its filter: 0, none
        band[:, 1:] = rows * np.uint8(255)
        rows_below = self.height - top - len(rows)
        checksum = zlib.adler32(band, self._add_blank(1, top))
        checksum = self._add_blank(checksum, rows_below)
        packed = b"\x78\x01" + self._packed_blank(top) + _packed(band) + self._packed_blank(rows_below) + b"\x03\0"
        size = self.width.to_bytes(4, "big") + self.height.to_bytes(4, "big")
        chunks = [
            _chunk(b"IHDR", size + bytes([8, 0, 0, 0, 0])),  # 8 bits, grey
            _chunk(b"IDAT", packed + checksum.to_bytes(4, "big")),
            _chunk(b"IEND", b""),
        ]
        return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()

    def _packed_blank(self, rows):
        """Black rows, put together from blocks of 1, 2, 4 ... of them."""
        blocks = [1 << bit for bit in range(rows.bit_length()) if rows >> bit & 1]
        for count in blocks:
            if count not in self.blank:
                self.blank[count] = _packed(bytes(count * (self.width + 1)), level=6)
        return b"".join(self.blank[count] for count in blocks)

    def _add_blank(self, checksum, rows):
        """Adler-32 after black rows are appended."""
        low, high = checksum & 0xFFFF, checksum >> 16
        return (high + rows * (self.width + 1) * low) % 65521 << 16 | low


def _packed(content, level=1):
    """Deflated bytes, flushed so that more may follow."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)


def _chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _from_base64(text, name):
    if text.lstrip()[:8].lower().startswith(("http://", "https://", "ftp://", "file://")):
        raise ValueError(f"{name} is an address: nothing is fetched for a request, send the image itself.")
    header, comma, content = text.partition(",")
    if comma and not (header.startswith("data:") and header.endswith(";base64")):
        raise ValueError(f"{name} must be base64 text, or begin with data:image/...;base64, got {_shown(text)}.")
    try:
        return base64.b64decode("".join((content if comma else text).split()), validate=True)  # lines may be broken
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


def _refuse_unknown(names, known, owner):
    for name in names:
        if name not in known:
            raise ValueError(f"{owner} can't hold {_shown(name)}; it may hold {', '.join(known)}.")


def _shown(value):
    """The start of a value as an error shows it: a request may be megabytes long."""
    text = repr(value[:60] if isinstance(value, (str, bytes, bytearray, list)) else value)
    return text if len(text) <= 70 else f"{text[:60]}..."
