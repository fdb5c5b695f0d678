"""Images of any number of channels and bits with the values that they hold: PNG, TIFF, NumPy files, DICOM, arrays."""

import math
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hub_unets.modeling.images import open_picture, to_array, upright

MOST_VALUES = 2**29  # of an image: what claims more is refused before it is decoded
NUMPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
TIFF_SUBFILE, TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_ORIENTATION, TIFF_SAMPLES = 254, 258, 262, 274, 277
TIFF_NUMBERS, UNSIGNED, SIGNED = 339, 1, 2  # the tag of the kind of numbers, and two of its values
AS_STORED = ("1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "I", "F")  # PIL modes whose bands are the file's channels
TIFF_DEFLATED, TIFF_SPARE = (8, 32946), 2**16  # compressions; bytes that a writer may add to a strip
JPEG2000_HEADER = b"\xff\x4f\xff\x51"
DICOM_START, DICOM_DEFLATED, DICOM_HEADERS = 132, b"1.2.840.10008.1.2.1.99", 2**20  # byte, syntax, bytes
DICOM_WINDOWS = {"LINEAR": (0.5, 1), "LINEAR_EXACT": (0, 0)}  # what is taken from centre and width; PS3.3 C.11.2.1


class ImageValues(NamedTuple):
    """An image's own values, and what its file says of them.

    `pixels` are H x W x C, of any type of number; `full_range` is the least and the greatest value that their type
    holds, None of floats and of integers of 32 bits or more; `window` is the range that a DICOM file asks for, None
    where it asks for none, `is_dicom` whether there is such a file; `is_inverted` says that low values are white.
    """

    pixels: np.ndarray
    full_range: tuple | None = None
    window: tuple | None = None
    is_dicom: bool = False
    is_inverted: bool = False


def read_values(image, num_channels, layout=None, most=MOST_VALUES):
    """An image as ImageValues of `num_channels` channels.

    Args:
        image: path, a file's bytes, PIL image, array or tensor, H x W, H x W x C or C x H x W. Files are PNG, JPEG
            and others that Pillow reads, TIFF (pages or planes), .npy, .npz of one array, or DICOM.
        num_channels: each page of a TIFF, frame of a DICOM file or band is a channel. One grey channel also stands for
            three, three equal ones for one, and opacity is left out where it is one channel too many.
        layout: `"channels_first"` or `"channels_last"` of an array whose shape does not tell.
        most: values that an image may have, H x W x channels; larger files are refused before they are decoded.

    Raises:
        ValueError: it can't be read, is too large, has another number of channels, or needs a package that is not
            installed.
    """
    if isinstance(image, (str, Path)):
        try:
            return read_values(Path(image).read_bytes(), num_channels, most=most)
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
    if isinstance(image, (bytes, bytearray)):
        try:
            values = _of_bytes(bytes(image), num_channels, most)
            _require_size(values.pixels.shape, most)  # one channel may have become three
            return values
        except Exception as error:  # each decoder raises errors of many classes for broken files
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"not a readable image ({str(error) or type(error).__name__}): replace it.") from error
    if isinstance(image, Image.Image):
        return _of_pillow(image, num_channels, most)
    return _of_array(to_array(image), num_channels, layout)


def _of_bytes(content, num_channels, most):
    if content.startswith(NUMPY):
        return _of_array(_numpy_array(BytesIO(content), most), num_channels)
    if content.startswith(ZIP):
        return _of_array(_only_array(content, most), num_channels)
    if content[128:132] == b"DICM":
        return _of_dicom(content, num_channels, most)
    try:
        image = open_picture(BytesIO(content))
    except Image.UnidentifiedImageError as error:
        if content[:2] not in (b"II", b"MM"):
            raise ValueError("not a file of a known kind: PNG, TIFF, .npy, .npz, DICOM and others.") from error
        return _of_tifffile(content, num_channels, most)
    if _is_changed(image):
        return (_of_tifffile if image.format == "TIFF" else _of_colour_png)(content, num_channels, most)
    return _of_pillow(image, num_channels, most)


def _numpy_array(file, most):
    """The array of a .npy file, whose header is checked first."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    _require_numbers(dtype)
    _require_size(shape, most)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _only_array(content, most):
    """The array of a .npz file of one."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entries = archive.infolist()
        if len(entries) != 1:
            names = ", ".join(entry.filename.removesuffix(".npy") for entry in entries[:5]) or "none"
            raise ValueError(f"a .npz file must hold one array, the image; this one holds {len(entries)}: {names}.")
        if entries[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without bound
            raise ValueError("a .npz file must be as NumPy's savez or savez_compressed writes it.")
        with archive.open(entries[0]) as file:
            return _numpy_array(file, most)


def _of_array(array, num_channels, layout=None):
    _require_numbers(array.dtype)
    if array.ndim == 2:
        array = array[..., None]
    shape, counts = array.shape, {num_channels, 1} if num_channels == 3 else {num_channels}
    is_first = layout == "channels_first" or (layout is None and array.ndim == 3 and shape[-1] not in counts)
    if array.ndim == 3 and is_first and (layout or shape[0] in counts):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or not array.size:
        raise ValueError(f"an image must be H x W, H x W x C or C x H x W, got an array of {shape}.")
    return ImageValues(_with_channels(array, num_channels), _range_of_type(array.dtype))


def _of_pillow(image, num_channels, most):
    """A PIL image; of a TIFF each page is as many channels as it has bands."""
    if _is_changed(image):
        raise ValueError(
            "Pillow changes its values (16 bits of colours, or signed): give the file itself (its path, its bytes, or "
            "of a request base64 text of them), not the opened image."
        )
    pages, is_tiff = [], image.format == "TIFF"
    count = getattr(image, "n_frames", 1) if is_tiff else 1
    _require_size([*image.size, count * len(image.getbands())], most)
    for number in range(count):
        if count > 1:
            image.seek(number)
        if not (is_tiff and count > 1 and image.tag_v2.get(TIFF_SUBFILE, 0) & 1):  # a smaller copy of another page
            pages.append(_page(image, num_channels // count if count > 1 else num_channels))
    if len({page.shape for page in pages}) > 1:
        raise ValueError(f"its {len(pages)} pages differ in size or channels: save them as files of their own.")
    full_range = (0, 1) if image.mode == "1" else _range_of_type(pages[0].dtype)
    if image.format == "PPM" and image.mode == "I":  # a file of 16 bits
        full_range = (0, 65535)
    is_inverted = is_tiff and image.mode.startswith(("I;16", "F")) and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0
    pixels = _with_channels(np.concatenate(pages, axis=-1), num_channels, "pages" if count > 1 else "channels")
    return ImageValues(pixels, full_range, is_inverted=is_inverted)


def _page(image, num_channels):
    """One upright picture of a PIL image as H x W x bands."""
    image = upright(image)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode not in AS_STORED and not image.mode.startswith("I;16"):
        image = image.convert("RGBA" if image.mode in ("PA", "RGBa", "La") else "RGB")
    if image.mode == "CMYK" and num_channels != 4:
        image = image.convert("RGB")
    array = np.asarray(image)
    array = array.astype(array.dtype.newbyteorder("="))
    array = array[..., None] if array.ndim == 2 else array
    has_opacity = image.mode in ("LA", "RGBA", "RGBX") and array.shape[-1] != num_channels
    return array[..., :-1] if has_opacity else array


def _is_changed(image):
    """Whether Pillow would change values of an image that is not loaded yet.

    It has no colours of 16 bits, and reads signed integers of 8 as unsigned ones and unsigned ones of 32 as signed.
    """
    bands = len(image.getbands())
    if image.format == "TIFF":
        samples, bits = image.tag_v2.get(TIFF_SAMPLES, 1), max(image.tag_v2.get(TIFF_BITS, (1,)))
        kinds = image.tag_v2.get(TIFF_NUMBERS, (UNSIGNED,))
        is_changed = bits < 32 if SIGNED in kinds else bits == 32 and UNSIGNED in kinds
        return samples != bands or (bands > 1 and bits > 8) or is_changed
    if image.format == "JPEG2000":
        return bands > 1 and _bits_of_jpeg2000(image) > 8
    tiles = getattr(image, "tile", ())
    if image.format == "PPM":
        return bands > 1 and any(isinstance(tile[-1], tuple) and tile[-1][1] > 255 for tile in tiles)
    return bands > 1 and any(";16" in str(tile[-1]) for tile in tiles)


def _bits_of_jpeg2000(image):
    """The bits of the first channel, as the codestream's header says (ISO/IEC 15444-1, A.5.1); 8 of a loaded image."""
    if image.fp is None:
        return 8
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    start = content.find(JPEG2000_HEADER)
    return (content[start + 42] & 127) + 1 if 0 <= start < len(content) - 42 else 8


def _of_colour_png(content, num_channels, most):
    """A PNG of colours of 16 bits: Pillow takes a value's first byte, and the second where the order says so."""
    halves = []
    for order in ("B", "L"):
        image = open_picture(BytesIO(content))
        _require_size([*image.size, len(image.getbands())], most)
        if image.tile[0].args == "LA;16B":
            raise ValueError("grey of 16 bits with opacity is not read: save it without opacity.")
        if image.format != "PNG" or image.tile[0].args not in ("RGB;16B", "RGBA;16B"):
            raise ValueError("colours of 16 bits are read from PNG, TIFF and NumPy files: save it as one of these.")
        image.tile = [tile._replace(args=tile.args.replace(";16B", f";16{order}")) for tile in image.tile]
        halves.append(_page(image, num_channels).astype(np.uint16))
    return ImageValues(_with_channels(halves[0] * 256 + halves[1], num_channels), (0, 65535))


def _of_tifffile(content, num_channels, most):
    """A TIFF that Pillow can't read, or not without a loss."""
    tifffile = _tifffile()
    with tifffile.TiffFile(BytesIO(content)) as file:
        if len(file.series) > 1:
            raise ValueError(f"a TIFF of {len(file.series)} pictures that differ in form: save them apart.")
        (series,), page = file.series, file.pages[0]
        if TIFF_ORIENTATION in page.tags and page.tags[TIFF_ORIENTATION].value != 1:
            raise ValueError("a TIFF that is to be shown turned (its orientation tag): save it upright.")
        _require_size(series.shape, most)
        _require_small_segments(series, content, most)
        axes, is_inverted = series.axes, page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        try:
            array = series.asarray()
        except ValueError as error:  # of a codec that is missing
            raise ValueError(
                f"a TIFF that can't be decoded ({error}); where it says imagecodecs: pip install it."
            ) from error
    order = [axes.index("Y"), axes.index("X")]
    order += [number for number in range(array.ndim) if number not in order]
    pixels = array.transpose(order).reshape(*(array.shape[number] for number in order[:2]), -1)
    pixels = _with_channels(pixels, num_channels, "channels or pages")
    return ImageValues(pixels, _range_of_type(pixels.dtype), is_inverted=is_inverted)


def _require_small_segments(series, content, most):
    """Refuse a TIFF whose deflated strips or tiles hold far more than their pixels, all of which are unpacked."""
    for page in filter(None, series.pages):
        _require_size(page.chunks, most)
        limit = TIFF_SPARE + 2 * math.prod(page.chunks) * page.dtype.itemsize
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if page.compression in TIFF_DEFLATED and _unpacks_to_more(content[start : start + count], limit):
                raise ValueError("a TIFF whose strips or tiles hold more than their pixels: save it again.")


def _unpacks_to_more(deflated, limit, header=zlib.MAX_WBITS):
    """Whether deflated bytes hold more than `limit`; they are unpacked up to there."""
    return len(zlib.decompressobj(header).decompress(deflated, limit + 1)) > limit


def _of_dicom(content, num_channels, most):
    """A DICOM file: its values after slope and intercept, its frames as channels."""
    pydicom = _pydicom()
    _require_small_dicom(pydicom, content, most)
    file = pydicom.dcmread(BytesIO(content))
    frames, samples = int(file.get("NumberOfFrames", 1) or 1), int(file.get("SamplesPerPixel", 1))
    if "PixelData" not in file or "Rows" not in file:
        raise ValueError("a DICOM file without pixels.")
    if file.PhotometricInterpretation == "PALETTE COLOR":
        raise ValueError("a DICOM file with a palette: save it as colours.")
    _require_size([file.Rows, file.Columns, frames * samples], most)
    stored = file.pixel_array
    stored = stored.reshape(frames, file.Rows, file.Columns, samples)
    pixels = np.moveaxis(stored, 0, 2).reshape(file.Rows, file.Columns, frames * samples)  # of a frame its samples
    signed, bits = int(file.get("PixelRepresentation", 0)), int(file.get("BitsStored", 8 * stored.itemsize))
    full_range = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = _slope_and_intercept(file)
    if (slope, intercept) != (1, 0):
        pixels = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        full_range = tuple(sorted(slope * bound + intercept for bound in full_range))
    pixels = _with_channels(pixels, num_channels, "frames" if frames > 1 else "channels")
    is_inverted = file.PhotometricInterpretation == "MONOCHROME1"
    return ImageValues(pixels, full_range, _dicom_window(file), True, is_inverted)


def _require_small_dicom(pydicom, content, most):
    """Refuse a deflated DICOM file of more than `most` values and its headers: reading its first field unpacks it."""
    file = BytesIO(content)
    file.seek(DICOM_START)
    options = {"is_implicit_VR": False, "is_little_endian": True}
    fields = pydicom.filereader.data_element_generator(file, **options, stop_when=lambda tag, *_: tag >> 16 != 2)
    values = [bytes(field.value or b"").strip(b"\0 ") for field in fields]
    limit = 8 * most + DICOM_HEADERS
    if DICOM_DEFLATED in values and _unpacks_to_more(file.read(), limit, -zlib.MAX_WBITS):
        raise ValueError(f"a deflated DICOM file of more than {most:,} values: make it smaller.")


def _of_frames(file, name):
    """The data sets that may hold what a DICOM file says of its values: of all frames, of each, or the file itself."""
    groups = [
        *(file.get("SharedFunctionalGroupsSequence") or ()),
        *(file.get("PerFrameFunctionalGroupsSequence") or ()),
    ]
    return [group[name][0] for group in groups if name in group] or [file]


def _slope_and_intercept(file):
    """What brings a DICOM file's stored numbers to its values.

    Raises:
        ValueError: a table does, or other numbers for each frame.
    """
    steps = _of_frames(file, "PixelValueTransformationSequence")
    pairs = {tuple(float(step.get(f"Rescale{name}") or 0) for name in ("Slope", "Intercept")) for step in steps}
    if len(pairs) > 1 or "ModalityLUTSequence" in file:
        raise ValueError(
            "a DICOM file with a table of values, or frames of different slopes: save it as a NumPy file."
        )
    ((slope, intercept),) = pairs
    return slope or 1, intercept


def _dicom_window(file):
    """(low, high) of a DICOM file's first window; None without one, or with another one for each frame.

    Raises:
        ValueError: it is a curve.
    """
    steps = _of_frames(file, "FrameVOILUTSequence")
    windows = {tuple(str(step.get(f"Window{name}", "")) for name in ("Center", "Width")) for step in steps}
    file = steps[0]
    if len(windows) > 1 or file.get("WindowWidth") in (None, "") or file.get("WindowCenter") in (None, ""):
        return None
    center, width = (float(np.atleast_1d(file.get(name))[0]) for name in ("WindowCenter", "WindowWidth"))
    function = file.get("VOILUTFunction") or "LINEAR"
    if function not in DICOM_WINDOWS:
        raise ValueError(f"a DICOM file with a window of the kind {function}: set intensity to numbers of yours.")
    shift, less = DICOM_WINDOWS[function]
    return center - shift - (width - less) / 2, center - shift + (width - less) / 2


def _with_channels(pixels, num_channels, kind="channels"):
    """H x W x C with C = `num_channels`: one channel for each of three, or one of three equal ones; else an error."""
    found = pixels.shape[-1]
    if found == num_channels:
        return pixels
    if (found, num_channels) == (1, 3):
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    if (found, num_channels) == (3, 1) and (pixels == pixels[..., :1]).all():
        return pixels[..., :1]
    colours = "; it is in colours: make it grey first" if (found, num_channels) == (3, 1) else ""
    several = f"; for one of its {kind} at a time save them as files of their own" if found > num_channels else ""
    raise ValueError(
        f"it has {found} {kind}, the network takes {num_channels} channels (num_channels){colours or several}."
    )


def _range_of_type(dtype):
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind in "ui" and dtype.itemsize <= 2:
        return np.iinfo(dtype).min, np.iinfo(dtype).max
    return None


def _require_numbers(dtype):
    if dtype.kind not in "buif":
        raise ValueError(f"an image holds numbers, this array {dtype}.")


def _require_size(shape, most):
    if math.prod(map(int, shape)) > most:
        raise ValueError(f"an image of {' x '.join(map(str, shape))} values, more than {most:,}: make it smaller.")


def _pydicom():
    try:
        import pydicom
    except ImportError as error:
        raise ValueError("a DICOM file needs the package pydicom: pip install pydicom") from error
    return pydicom


def _tifffile():
    try:
        import tifffile
    except ImportError as error:
        raise ValueError("this TIFF needs the package tifffile: pip install tifffile") from error
    return tifffile
