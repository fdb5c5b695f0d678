"""What published code may do, judged on its syntax tree: compute on tensors and open images, nothing else.

An endpoint's handler may also load the folder that it is given, and write pictures and base64 text.

It is a second line behind the comparison with the release: it says what that release's own code can reach.
"""

import ast
from typing import NamedTuple

from hub_repos.untrusted import read_text

MODULES = {
    "contextlib",
    "dataclasses",
    "difflib",
    "functools",
    "itertools",
    "math",
    "numpy",
    "pathlib",
    "PIL",
    "timm",
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "torch.utils.checkpoint",
    "transformers",
    "transformers.image_processing_utils",
    "transformers.modeling_outputs",
    "typing",
}
DUNDERS = {"__init__", "__call__", "__name__"}
BUILTINS = frozenset(("eval", "exec", "compile", "globals", "locals", "open", "input", "setattr", "delattr"))
MODULES_INSIDE = """os sys io subprocess socket builtins importlib shutil ctypes pickle requests urllib operator
    inspect hub jit package serialization multiprocessing library cpp_extension _C ops utils"""
FILES_AND_PROCESSES = """system popen load_library load_state_dict_from_url from_pretrained save_pretrained push_to_hub
    save fromfile memmap loadtxt genfromtxt tofile savetxt savez savez_compressed read_text read_bytes write_text
    write_bytes FileIO open_code unlink rmdir mkdir touch rename symlink_to hardlink_to chmod"""
NAMES = frozenset(f"{MODULES_INSIDE} {FILES_AND_PROCESSES}".split())
ENDPOINT = "handler.py"


class Rules(NamedTuple):
    """What a file may import, and which attributes and imported names it may not reach."""

    modules: set
    names: frozenset


RULES = Rules(MODULES, NAMES)
ENDPOINT_RULES = Rules(MODULES | {"base64", "io"}, NAMES - {"from_pretrained", "save"})


def check_code(folder):
    """Raise ValueError, with file and line, unless every .py of the folder keeps to the rules."""
    siblings = {path.stem for path in folder.glob("*.py")}
    for path in sorted(folder.glob("*.py")):
        check_source(read_text(path), path.name, siblings)


def check_source(source, name, siblings=()):
    """Raise ValueError unless a file's source keeps to the rules; `siblings` are the modules beside it."""
    tree = ast.parse(source, name)
    calls_without_arguments = {
        id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and not (node.args or node.keywords)
    }
    rules = ENDPOINT_RULES if name == ENDPOINT else RULES
    for node in ast.walk(tree):
        fault = _fault(node, siblings, calls_without_arguments, rules)
        if fault:
            raise ValueError(f"{name}:{node.lineno}: {fault}")


def _fault(node, siblings, calls_without_arguments, rules):
    """What a node does that it may not; None if nothing."""
    if isinstance(node, ast.Import):
        return next((f"imports {one.name}" for one in node.names if one.name not in rules.modules), None)
    if isinstance(node, ast.ImportFrom):
        return _import_fault(node, siblings, rules)
    if isinstance(node, ast.Attribute):
        return _attribute_fault(node, calls_without_arguments, rules)
    if isinstance(node, ast.Name) and (node.id in BUILTINS or _is_dunder(node.id)):
        return f"names {node.id}"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _is_dunder(node.name):
        return f"defines {node.name}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "__" in node.value:
        return "holds a text with two underscores, by which names are hidden"
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr":
        return _getattr_fault(node)
    return None


def _import_fault(node, siblings, rules):
    where = "." * node.level + (node.module or "")
    if node.level > 1 or node.module not in (siblings if node.level else rules.modules):
        return f"imports from {where}"
    refused = rules.names | BUILTINS | {"load", "*"}
    wrong = [one.name for one in node.names if one.name in refused or _is_dunder(one.name)]
    return f"imports {wrong[0]} from {where}" if wrong else None


def _attribute_fault(node, calls_without_arguments, rules):
    text = ast.unparse(node)
    if node.attr in rules.names or _is_dunder(node.attr):
        return f"reaches {text}"
    if node.attr == "open" and text != "Image.open":
        return f"reaches {text}: files are opened by PIL.Image.open alone"
    if node.attr == "load" and id(node) not in calls_without_arguments:
        return f"reaches {text}"  # an image's load() takes nothing; torch's and NumPy's take a file
    return None


def _getattr_fault(node):
    """Of `self`, any attribute; of another name, one that is written out."""
    owner, attribute = (*node.args, None, None)[:2]
    if isinstance(owner, ast.Name) and isinstance(attribute, ast.Constant):
        return f"reaches {attribute.value}" if attribute.value in NAMES | {"load", "open"} else None
    return None if getattr(owner, "id", None) == "self" else f"calls {ast.unparse(node)}"


def _is_dunder(name):
    return name.startswith("__") and name not in DUNDERS
