"""Who pushes where in these tests, and how files are compared."""

TOKEN = "hf_" + "w" * 34
READER = "hf_" + "r" * 34
REPO = "someone/unet"
SPACE = f"spaces/{REPO}"
FIRST_HEAD = 2  # commits on main after one push: the Hub's own, and the push's


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_attributes(files):
    return {path: content for path, content in files.items() if path != ".gitattributes"}
