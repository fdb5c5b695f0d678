"""The fields of the image processor, checked, and the options of other processors that it does not have."""

import math

SIDES = 16384  # pixels of `size`, at most: more is a slip
FILTERS = {"nearest": 0, "nearest-exact": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
MOST_CHANNELS = 1024
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}  # of RGB in 0..1
UNSUPPORTED = {  # options of transformers' processors, and what to do instead
    "do_center_crop": "crop the images first",
    "crop_size": "crop the images first",
    "do_pad": "images are resized to `size`; `mirror_margin` adds a border",
    "pad_size": "images are resized to `size`; `mirror_margin` adds a border",
}


def refuse_unsupported(options):
    """Raise ValueError where an option of other processors asks for something that this one does not do."""
    for name, cure in UNSUPPORTED.items():
        if options.get(name):
            raise ValueError(f"{name}={options[name]!r} is not supported by this image processor: {cure}.")
    if options.get("do_convert_rgb", True) is False:
        raise ValueError("do_convert_rgb=False is not supported: num_channels and intensity say what images become.")
    if options.get("default_to_square", True) is False:
        raise ValueError('default_to_square=False is not supported: give size as {"height", "width"}.')


def check_fields(fields):
    """The processor's fields in their standard form, by name.

    Raises:
        ValueError: a value of another type or range; names the field.
    """
    checked = {name: check(name, _plain(fields[name])) for name, check in FIELDS.items() if check is not None}
    for name in IMAGENET:
        checked[name] = _one_each(name, _plain(fields[name]), checked["num_channels"])
    if checked["drop_outside_view"] and (checked["num_channels"] != 3 or checked["intensity"] is not None):
        raise ValueError("drop_outside_view=True is for RGB images of an endoscope: set it to False.")
    return checked


def _plain(value):
    """A NumPy number or array, or a tensor, as Python's own numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _size(name, value):
    if hasattr(value, "items") or hasattr(value, "keys"):
        value = {key: side for key, side in dict(value).items() if side is not None}
        if "shortest_edge" in value or "longest_edge" in value:
            raise ValueError(
                f"{name} must be {{'height', 'width'}}, got {value}: every image is resized to one size, so "
                "shortest_edge and longest_edge have no meaning here."
            )
        sides = [value.get("height"), value.get("width")]
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        sides = list(value)
    else:
        sides = [value, value]
    if not all(_is_whole(side) and 1 <= side <= SIDES for side in sides):
        raise ValueError(
            f'{name} must be {{"height", "width"}} in pixels, 1 to {SIDES}, or one number for both; got {value!r}.'
        )
    return {"height": int(sides[0]), "width": int(sides[1])}


def _flag(name, value):
    if value is not True and value is not False:
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return value


def _filter(name, value):
    value = getattr(value, "value", value)  # torchvision's InterpolationMode is an enum of names
    number = FILTERS.get(value.lower()) if isinstance(value, str) else value
    if not _is_whole(number) or number not in FILTERS.values():
        raise ValueError(f"{name} must be a PIL filter, 0 to 5, or one of {', '.join(FILTERS)}; got {value!r}.")
    return int(number)


def _margin(name, value):
    if not _is_whole(value) or not 0 <= value <= SIDES:
        raise ValueError(f"{name} must be a whole number of pixels, 0 to {SIDES}, got {value!r}.")
    return int(value)


def _factor(name, value):
    if not _is_number(value) or value == 0:
        raise ValueError(f"{name} must be a number and not 0, got {value!r}.")
    return value


def _fraction(name, value):
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in 0..1, got {value!r}.")
    return value


def _one_each(name, value, num_channels):
    """A list of `num_channels` numbers from one for each, or one for all, perhaps in a list.

    None is ImageNet's, whose mean stands for channels that are not RGB.
    """
    if value is None:
        value = IMAGENET[name] if num_channels == 3 else round(sum(IMAGENET[name]) / 3, 6)
    values = value if isinstance(value, (list, tuple)) else [value]
    values = list(values) * num_channels if len(values) == 1 else values
    fits = len(values) == num_channels and all(map(_is_number, values))
    if not fits or (name == "image_std" and 0 in values):
        needed = "three numbers, one for each of red, green and blue"
        needed = needed if num_channels == 3 else f"{num_channels} numbers, one for each channel (num_channels)"
        raise ValueError(f"{name} must be {needed}, got {value!r}.")
    return list(values)


def _channels(name, value):
    if not _is_whole(value) or not 1 <= value <= MOST_CHANNELS:
        raise ValueError(f"{name} must be a whole number of channels, 1 to {MOST_CHANNELS}, got {value!r}.")
    return int(value)


def _intensity(name, value):
    """None, or a dictionary of one range."""
    if value is None or value == {"window": "dicom"}:
        return value
    ((kind, bounds),) = value.items() if isinstance(value, dict) and len(value) == 1 else [(None, None)]
    bounds = _plain(bounds)
    is_pair = isinstance(bounds, (list, tuple)) and len(bounds) == 2 and all(map(_is_number, bounds))
    fits = is_pair and bounds[0] < bounds[1]
    if kind == "percentiles" and fits and bounds[0] >= 0 and bounds[1] <= 100 or kind == "window" and fits:
        return {kind: list(bounds)}
    raise ValueError(
        f'{name} must be null (the full range of the values\' type), {{"window": [low, high]}}, {{"window": "dicom"}} '
        f'(each DICOM file\'s own) or {{"percentiles": [low, high]}} in 0..100, low below high; got {value!r}.'
    )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


FIELDS = {
    "size": _size,
    "do_resize": _flag,
    "resample": _filter,
    "do_rescale": _flag,
    "rescale_factor": _factor,
    "do_normalize": _flag,
    **dict.fromkeys(IMAGENET),  # checked by `_one_each`, which needs the number of channels
    "num_channels": _channels,
    "intensity": _intensity,
    "mirror_margin": _margin,
    "mask_threshold": _fraction,
    "score_threshold": _fraction,
    "do_reduce_labels": _flag,
    "drop_outside_view": _flag,
}
