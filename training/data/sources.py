"""Any source of data to rows: a DatasetDict whose rows hold name, image and annotation.

`load_source` is the entry; below it are the kinds of source in the order in which it tries them: phantoms, a folder, a
zip, a parquet file, a COCO file, a Hub id. `name` is the stem; `image` and `annotation` stay encoded, as {"bytes",
"path"}. `load_images` gives a table's images where masks are not needed.
"""

import difflib
import io
import itertools
import os
import re
import urllib.parse
from pathlib import Path

import datasets
import pyarrow.compute
from PIL import Image

from hub_unets.modeling.images import height_and_width
from hub_unets.training.data.coco import coco_rows, is_coco
from hub_unets.training.data.files import (
    IMAGE_SUFFIXES,
    VALUE_SUFFIXES,
    first_few,
    image_files,
    is_text,
    say_left_out,
    upright_size,
)
from hub_unets.training.data.pairing import IMAGE_FOLDERS, MASK_FOLDERS, holds_pairs, paired_parts, subfolders
from hub_unets.training.data.phantoms import phantom_parts
from hub_unets.training.data.reading import read_image
from hub_unets.training.data.rows import ENCODED, FEATURES, PARTS, stored_paths
from hub_unets.training.data.zips import unzipped
from hub_unets.training.errors import UserError, first_line

MASK_WORDS = {*MASK_FOLDERS, "label", "annotation", "segmentation", "seg", "gt", "truth", "groundtruth"}

NAME_COLUMNS = "name", "stem", "id", "image_id", "file_name"

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

MOST = {"count": 100_000, "size": 4096, "seed": 10**9}  # of phantoms

FORMS = (
    "give a folder or a .zip with images/ and masks/ (or with metadata.csv, or COCO), a COCO .json file, a .parquet "
    'file or a folder of them, a Hub id "owner/name", or "phantoms?count=240&size=256&seed=0"'
)


def load_source(
    data: str,
    image_column: str | None = None,
    mask_column: str | None = None,
    id2label: dict[int, str] | None = None,
) -> datasets.DatasetDict:
    """The rows of `data` by part: train, validation, test, or the single key "all" where the source has no parts.

    Each part has the columns name (string), image and annotation (encoded). `image_column` and `mask_column` name the
    columns of a table, or the sub-folders of a folder, where they can't be told by type and name. `id2label` are the
    model's, for the categories of a COCO file; see `training.data.coco.coco_rows`.
    Raises UserError where nothing lies at `data`, or what lies there can't be paired.
    """
    if not is_text(data):
        raise UserError(f"{data!r}: a name that is not UTF-8: rename it")
    path = Path(data).expanduser()
    if data.partition("?")[0] == "phantoms":
        return _phantoms(data)
    if path.is_dir():
        parts = _folder(path, image_column, mask_column, id2label)
    elif path.is_file() and path.suffix.lower() == ".zip":
        parts = _zip(path, image_column, mask_column, id2label)
    elif path.is_file() and path.suffix.lower() == ".json":
        parts = _coco({"train": path}, image_column, id2label)
    elif path.is_file() and path.suffix.lower() == ".parquet":
        parts = _table(_parquet([path], path.parent), data, image_column, mask_column)
    elif path.exists():
        raise UserError(f"{data}: not a kind of file that holds a data set; {FORMS}")
    elif HUB_ID.fullmatch(data) and path.suffix.lower() not in {".zip", ".parquet"}:
        parts = _table(_load(data, data), data, image_column, mask_column)
    else:
        raise UserError(f"{data}: no such file or folder, and not a Hub id; {FORMS}")
    return datasets.DatasetDict({"all": parts["train"]} if set(parts) == {"train"} else parts)


def load_frames(folder: str, processor: object = None) -> datasets.Dataset:
    """Every image below `folder`, which shows no polyp: rows as `load_source` gives them, with masks all background.

    Names are paths from the folder; `processor` is what will read them. Raises UserError where no image lies there or
    one is broken.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; frames without a polyp are images in one folder")
    files, others = image_files(root)
    say_left_out(root, [path.relative_to(root).as_posix() for path in others], "that are no image files")
    if not files:
        raise UserError(f"{folder}: holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))}): give another folder")
    columns = {
        "name": [path.relative_to(root).as_posix() for path in files],
        "image": [{"bytes": None, "path": str(path.absolute())} for path in files],
        "annotation": [{"bytes": _blank_mask(path, processor), "path": None} for path in files],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _blank_mask(path: Path, processor: object) -> bytes:
    """A PNG of zeros as large as the upright image at `path`."""
    if path.suffix.lower() in VALUE_SUFFIXES:
        size = height_and_width(read_image({"bytes": None, "path": str(path)}, path.name, processor))[::-1]
    else:
        size = _size_of(path)
    file = io.BytesIO()
    Image.new("L", size).save(file, format="PNG")
    return file.getvalue()


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except Exception as error:  # Pillow's decoders raise more than OSError
        raise UserError(f"{path}: not a readable image ({error}): mend it or take it away") from error


def load_images(data: str) -> dict[str, datasets.Dataset]:
    """As `load_source` for phantoms and tables (a parquet file, a folder of them, a Hub id): name and image alone.

    Raises UserError where nothing can be loaded, or which column holds the images can't be told.
    """
    path = Path(data).expanduser()
    if data.partition("?")[0] == "phantoms":
        return _phantoms(data).select_columns(["name", "image"])
    if path.is_dir():
        loaded = _parquet(_tables(path), path)
    elif path.is_file():
        loaded = _parquet([path], path.parent)
    else:
        loaded = _load(data, data)
    parts = {part: (rows, _image_alone(rows.features, f"{data} ({part})")) for part, rows in loaded.items()}
    names = _names(parts)
    return {
        part: rows.select_columns([image]).rename_columns({image: "image"}).cast_column("image", ENCODED)
        .add_column("name", names[part])
        for part, (rows, image) in parts.items()
    }  # fmt: skip


def holds_masks(folder: Path) -> bool:
    """Whether a folder, or its folders of parts, hold images with masks beside them."""
    return _metadata_names_masks(folder) or holds_pairs(folder)


def _phantoms(data: str) -> datasets.DatasetDict:
    options = {}
    for key, value in urllib.parse.parse_qsl(data.partition("?")[2], keep_blank_values=True):
        if key not in MOST:
            nearest = difflib.get_close_matches(key, MOST, n=1, cutoff=0)[0]
            raise UserError(f"{data}: unknown key {key!r}; did you mean {nearest!r}? Keys are {', '.join(MOST)}")
        if not re.fullmatch(r"[0-9]{1,10}", value):
            raise UserError(f"{data}: {key} must be a whole number, got {value!r}; write for example {key}=128")
        if int(value) > MOST[key]:
            raise UserError(f"{data}: {key} must be at most {MOST[key]}, got {value}")
        options[key] = int(value)
    return phantom_parts(**options)


def _folder(
    folder: Path, image_column: str | None, mask_column: str | None, id2label: dict[int, str] | None
) -> dict[str, datasets.Dataset]:
    if _metadata_names_masks(folder):
        loaded = _load("imagefolder", str(folder), data_dir=str(folder))
        parts = _table(loaded, str(folder), image_column, mask_column)
        _say_unlisted(folder, [folder], parts)
        return parts
    if not (mask_column or holds_pairs(folder)) and (files := _coco_files(folder)):
        return _coco(files, image_column, id2label)
    if pairs := paired_parts(folder, image_column, mask_column):
        return pairs
    if tables := _tables(folder):
        return _table(_parquet(tables, folder), str(folder), image_column, mask_column)
    folders = subfolders(folder)
    if len(folders) == 1:  # a zip often wraps everything in one folder
        return _folder(folders[0], image_column, mask_column, id2label)
    listing = first_few([sub.name for sub in folders], 8) or "no folders"
    raise UserError(
        f"{folder}: needs a folder of images ({'|'.join(IMAGE_FOLDERS)}) and one of masks ({'|'.join(MASK_FOLDERS)}), "
        f"also in train/, validation/ and test/, or metadata.csv with file_name and mask_file_name, or a COCO "
        f".json; found {listing}: "
        "rename them, or name them as image_column and mask_column"
    )


def _zip(path: Path, *options: object) -> dict[str, datasets.Dataset]:
    folder = unzipped(path)
    try:
        return _folder(folder, *options)
    except UserError as error:  # the user knows the zip, not the cache
        raise UserError(str(error).replace(str(folder), str(path))) from error


def _metadata_names_masks(folder: Path) -> bool:
    files = [
        file for end in ("csv", "jsonl") for prefix in ("", "*/") for file in folder.glob(f"{prefix}metadata.{end}")
    ]
    return any("_file_name" in _header(file) for file in files if file.is_file())


def _header(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(10_000)


def _tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.parquet") if file.is_file())


def _say_unlisted(source: Path, folders: list[Path], parts: dict[str, datasets.Dataset]) -> None:
    """Names the images in `folders` that no row has for its image or mask."""
    columns = [rows.data.column(column) for rows in parts.values() for column in ("image", "annotation")]
    paths = [pyarrow.compute.struct_field(column, "path").to_pylist() for column in columns]
    listed = {os.path.realpath(path) for column in paths for path in column if path and "\0" not in path}
    files = {file for folder in folders for file in image_files(folder)[0]}
    unlisted = [file.name for file in files if os.path.realpath(file) not in listed]
    say_left_out(source, unlisted, "images that are not listed")


def _coco_files(folder: Path) -> dict[str, Path]:
    """The COCO files of a folder, of its annotations/ and of its parts' folders, by part."""
    folders = [sub for sub in subfolders(folder) if sub.name.lower() in PARTS or sub.name.lower() == "annotations"]
    files = {}
    for file in [file for parent in (folder, *folders) for file in sorted(parent.glob("*.json")) if is_coco(file)]:
        words = [file.parent.name.lower(), *re.split(r"[^a-z]+", file.stem.lower())]
        part = next((PARTS[word] for word in words if word in PARTS), "train")
        if part in files:
            raise UserError(f"{folder}: two COCO files, {files[part].name} and {file.name}: give one of them as data")
        files[part] = file
    return files


def _coco(files: dict[str, Path], images: str | None, id2label: dict[int, str] | None) -> dict[str, datasets.Dataset]:
    parts = {part: coco_rows(file, images, id2label) for part, file in files.items()}
    folders = {Path(path).parent for rows in parts.values() for path in stored_paths(rows, "image")}
    outermost = [folder for folder in folders if not folders & set(folder.parents)]
    _say_unlisted(next(iter(files.values())), outermost, parts)
    return parts


def _parquet(files: list[Path], root: Path) -> datasets.DatasetDict:
    """Loads parquet files; a word of the path names the part, and all files are train where no path has one."""
    data_files, unassigned = {}, []
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(root)).lower()) if len(files) > 1 else []
        part = next((PARTS[word] for word in words if word in PARTS), None)
        unassigned.append(str(file)) if part is None else data_files.setdefault(part, []).append(str(file))
    if data_files:
        unassigned = [Path(file).relative_to(root).as_posix() for file in unassigned]
        say_left_out(root, unassigned, "tables whose names say neither train, validation nor test")
    data_files = data_files or {"train": unassigned}
    return _load("parquet", str(files[0] if len(files) == 1 else root), data_files=data_files)


def _load(builder: str, source: str, **options) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(builder, **options)
    except Exception as error:  # the Hub, the network, pyarrow and datasets each raise their own
        cause = error
        while isinstance(cause, datasets.exceptions.DatasetGenerationError) and cause.__cause__:
            cause = cause.__cause__  # the outer error gives no reason
        raise UserError(f"{source}: neither here nor loadable as a data set ({first_line(cause)}); {FORMS}") from error


def _table(parts: dict, source: str, image_column: str | None, mask_column: str | None) -> dict[str, datasets.Dataset]:
    tables = {}
    for key, rows in parts.items():
        image, mask = _image_and_mask(rows.features, f"{source} ({key})", image_column, mask_column)
        part = PARTS.get(key, key)
        if part in tables:
            raise UserError(f"{source}: two parts are called {part}: merge {key} into the other one")
        tables[part] = rows, image, mask
    names = _names({part: (rows, image) for part, (rows, image, _) in tables.items()})
    return {part: _standard(*row, names[part], f"{source} ({part})") for part, row in tables.items()}


def _image_and_mask(features: dict, source: str, image: str | None, mask: str | None) -> tuple[str, str]:
    columns = [name for name, feature in features.items() if _holds_images(feature)]
    listing = f"image columns: {', '.join(columns) or 'none'}; all columns: {', '.join(features)}"
    for option, requested in ("image_column", image), ("mask_column", mask):
        if requested and requested not in columns:
            raise UserError(f"{source}: {option}={requested!r} is not an image column; {listing}")
    free = [column for column in columns if column not in (image, mask)]
    masks = [mask] if mask else [column for column in free if _is_mask(column)]
    images = [image] if image else [column for column in free if column not in masks]
    for option, kind, chosen in ("image_column", "images", images), ("mask_column", "masks", masks):
        if len(chosen) != 1:
            count = f"{len(chosen)} columns may hold" if chosen else "no image column looks like"
            raise UserError(f"{source}: {count} the {kind}; {listing}: name one as {option}")
    return images[0], masks[0]


def _image_alone(features: dict, source: str) -> str:
    columns = [name for name, feature in features.items() if _holds_images(feature)]
    images = [name for name in columns if not _is_mask(name)]
    if len(images) != 1:
        listing = f"image columns: {', '.join(columns) or 'none'}; all columns: {', '.join(features)}"
        raise UserError(f"{source}: {len(images)} columns may hold the images; {listing}: give their files instead")
    return images[0]


def _is_mask(column: str) -> bool:
    return bool(MASK_WORDS & set(re.split(r"[\W_]+", column.lower())))


def _holds_images(feature) -> bool:
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _names(parts: dict[str, tuple[datasets.Dataset, str]]) -> dict[str, list[str]]:
    """Stems by part: from the first name column, else the image's path, that is unique within each part."""
    for column in (*NAME_COLUMNS, None):
        names = {part: _stems(rows, column, image) for part, (rows, image) in parts.items()}
        if all(all(stems) and len(set(stems)) == len(parts[part][0]) for part, stems in names.items()):
            return names
    numbers = itertools.count()
    return {part: [f"row-{next(numbers):06d}" for _ in range(len(rows))] for part, (rows, _) in parts.items()}


def _stems(rows: datasets.Dataset, column: str | None, image: str) -> list[str]:
    if column is None:
        values = pyarrow.compute.struct_field(rows.data.column(image), "path").to_pylist()
    else:
        text = getattr(rows.features.get(column), "dtype", None) in ("string", "large_string")
        values = rows[column][:] if text else []
    return [_stem(value or "") for value in values]


def _stem(value: str) -> str:
    path = Path(value.replace("\\", "/"))
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name  # a dot may be part of a name


def _standard(rows: datasets.Dataset, image: str, mask: str, names: list[str], source: str) -> datasets.Dataset:
    rows = rows.select_columns([image, mask]).rename_columns({image: "image", mask: "annotation"})
    try:
        rows = rows.cast_column("image", ENCODED).cast_column("annotation", ENCODED).add_column("name", names)
    except (ValueError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(f"{source}: {image} and {mask} hold no images ({error}): write them as files") from error
    for column, source_column in ("image", image), ("annotation", mask):
        _require_files(rows, column, names, f"{source}: column {source_column}")
    return rows.select_columns(["name", "image", "annotation"])


def _require_files(rows: datasets.Dataset, column: str, names: list[str], source: str) -> None:
    fields = [pyarrow.compute.struct_field(rows.data.column(column), field) for field in ("bytes", "path")]
    nulls = pyarrow.compute.and_(*(pyarrow.compute.is_null(field) for field in fields)).to_pylist()
    if gaps := [name for name, null in zip(names, nulls, strict=True) if null]:
        raise UserError(f"{source}: no file for {first_few(gaps)} ({len(gaps)} in all): add it, or take the row away")
