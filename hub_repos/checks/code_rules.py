"""What published code may do, judged on its syntax tree: compute on tensors and open images, nothing else.

It is a second line behind the comparison with the release: it says what that release's own code can reach.
"""

import ast
from typing import NamedTuple

from hub_unets.hub_repos.checks.untrusted import read_text
from hub_unets.training.errors import UserError

MODULES = {  # what published code may import, and what it may reach in each
    name: frozenset(names.split())
    for name, names in {
        "contextlib": "suppress",
        "dataclasses": "dataclass",
        "difflib": "get_close_matches",
        "functools": "cache",
        "itertools": "pairwise",
        "math": "log",
        "numpy": "add arange array array_equal asarray ascontiguousarray bincount cumsum flatnonzero float32 float64 "
        "int32 int64 moveaxis ndarray pad repeat rint searchsorted stack uint8 unique where zeros",
        "pathlib": "Path",
        "PIL": "Image ImageOps",
        "PIL.Image": "Image Resampling fromarray open",
        "PIL.ImageOps": "exif_transpose",
        "timm": "create_model is_model list_models",
        "torch": "FloatTensor Tensor bool cat compiler device equal from_numpy is_grad_enabled nn no_grad ones_like "
        "stack zeros zeros_like",
        "torch.compiler": "is_compiling",
        "torch.nn": "BatchNorm2d Conv2d ConvTranspose2d GELU Identity LayerNorm Linear MaxPool2d Module ModuleDict "
        "ModuleList Parameter ReLU Sequential init",
        "torch.nn.functional": "binary_cross_entropy_with_logits cross_entropy interpolate max_pool2d pad relu "
        "scaled_dot_product_attention",
        "torch.nn.init": "kaiming_normal_ normal_ ones_ trunc_normal_ zeros_",
        "transformers": "ImageSegmentationPipeline PreTrainedModel PretrainedConfig",
        "transformers.image_processing_utils": "BaseImageProcessor BatchFeature",
        "transformers.modeling_layers": "GradientCheckpointingLayer",
        "transformers.modeling_outputs": "SemanticSegmenterOutput",
        "transformers.modeling_utils": "ALL_ATTENTION_FUNCTIONS",
        "warnings": "warn",
        "typing": "NamedTuple",
    }.items()
}
DUNDERS = {"__init__", "__call__", "__name__"}
BUILTINS = frozenset(
    ("eval", "exec", "compile", "globals", "locals", "open", "input", "setattr", "delattr", "help", "breakpoint")
)
MODULES_INSIDE = """os sys io subprocess socket builtins importlib shutil ctypes pickle requests urllib operator
    inspect hub jit package serialization multiprocessing library cpp_extension _C ops utils"""
FILES_AND_PROCESSES = """system popen load_library load_state_dict_from_url from_pretrained save_pretrained push_to_hub
    save dump show from_file from_json_file to_json_file fetch_images fromfile memmap loadtxt genfromtxt tofile savetxt
    savez savez_compressed read_text read_bytes write_text write_bytes unlink rmdir mkdir touch rename symlink_to
    hardlink_to chmod"""
FRAMES = """gi_frame gi_code cr_frame cr_code ag_frame ag_code f_back f_code f_globals f_locals f_builtins tb_frame
    tb_next mro"""  # what leads from any object to every other
NAMES = frozenset(f"{MODULES_INSIDE} {FILES_AND_PROCESSES} {FRAMES}".split())
REFUSED = NAMES | BUILTINS | {"load"}
ENDPOINT = "handler.py"  # answers requests: loads the folder that it lies in, reads and writes pictures in memory
OF_ENDPOINT = {
    name: MODULES.get(name, frozenset()) | frozenset(names.split())
    for name, names in {
        "base64": "b64decode b64encode",
        "io": "BytesIO",
        "PIL": "UnidentifiedImageError",
        "torch": "cuda inference_mode",
        "torch.cuda": "is_available",
        "transformers": "AutoImageProcessor AutoModelForSemanticSegmentation",
    }.items()
}


class Rules(NamedTuple):
    """What a file may import and reach by module, and the attributes of other objects that it may not reach."""

    modules: dict
    names: frozenset


RULES = Rules(MODULES, NAMES)
ENDPOINT_RULES = Rules(MODULES | OF_ENDPOINT, NAMES - {"from_pretrained", "save", "io"})


def check_code(folder):
    """Raise UserError, with file and line, unless every .py of the folder keeps to the rules."""
    sources = {path.name: read_text(path) for path in sorted(folder.glob("*.py"))}
    siblings = {name.removesuffix(".py"): File(ast.parse(source), name).modules for name, source in sources.items()}
    for name, source in sources.items():
        check_source(source, name, siblings)


def check_source(source, name, siblings=()):
    """Raise UserError unless a file's source keeps to the rules.

    `siblings` are the modules beside it, and what each imports by which names.
    """
    tree = ast.parse(source, name)
    file = File(tree, name, siblings)
    for node in ast.walk(tree):
        fault = _fault(node, file)
        if fault:
            raise UserError(f"{name}:{node.lineno}: {fault}")


class File:
    """What a file's nodes are judged by.

    Attributes:
        rules: the Rules of a file of its name.
        siblings: as in `check_source`.
        modules: {name in this file: imported module}.
        bases: ids of the nodes of which an attribute is taken.
        called: ids of the nodes that are called, `called_bare` of those without arguments.
        listed: names that only loops over texts written out bind.
    """

    def __init__(self, tree, name, siblings=()):
        nodes = list(ast.walk(tree))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        self.rules = ENDPOINT_RULES if name == ENDPOINT else RULES
        self.siblings = siblings
        self.modules = dict(pair for node in nodes for pair in _imported_modules(node, self.rules))
        self.bases = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        self.called = {id(node.func) for node in calls}
        self.called_bare = {id(node.func) for node in calls if not (node.args or node.keywords)}
        self.listed = _listed_names(nodes)

    def module_of(self, node):
        """The imported module that a node is; None if it is none."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id)
        name = f"{self.module_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else None
        return name if name in self.rules.modules else None


def _imported_modules(node, rules):
    """Pairs of a name in the file and the allowed module that an import gives it."""
    if isinstance(node, ast.Import):
        return [
            (one.asname or one.name.split(".")[0], one.name if one.asname else one.name.split(".")[0])
            for one in node.names
        ]
    if isinstance(node, ast.ImportFrom):
        pairs = [(one.asname or one.name, f"{node.module}.{one.name}") for one in node.names]
        return [(name, module) for name, module in pairs if module in rules.modules]
    return []


def _listed_names(nodes):
    """Names that are bound by nothing but loops over tuples of texts, none of which is a refused name."""
    loops = [node for node in nodes if isinstance(node, ast.For) and _is_harmless_list(node.iter)]
    targets = [node for loop in loops for node in ast.walk(loop.target) if isinstance(node, ast.Name)]
    stored = [node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    elsewhere = {node.id for node in stored if not any(node is target for target in targets)}
    elsewhere |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return {node.id for node in targets} - elsewhere


def _is_harmless_list(node):
    inside = list(ast.walk(node))
    texts = {one.value for one in inside if isinstance(one, ast.Constant)}
    return all(isinstance(one, (ast.Tuple, ast.Constant, ast.Load)) for one in inside) and not texts & REFUSED


def _fault(node, file):
    """What a node does that it may not; None if nothing."""
    if isinstance(node, ast.Import):
        return next((f"imports {one.name}" for one in node.names if one.name not in file.rules.modules), None)
    if isinstance(node, ast.ImportFrom):
        return _import_fault(node, file.siblings, file.rules.modules)
    if isinstance(node, ast.Attribute):
        return _attribute_fault(node, file)
    if isinstance(node, ast.Name):
        return _name_fault(node, file)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _is_dunder(node.name):
        return f"defines {node.name}"
    if isinstance(node, ast.Match):
        return "matches patterns, which reach attributes by another way"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "__" in node.value:
        return "holds a text with two underscores, by which names are hidden"
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr":
        return _getattr_fault(node, file)
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "vars":
        return None if ast.unparse(node) == "vars(self)" else f"calls {ast.unparse(node)}"
    return None


def _import_fault(node, siblings, modules):
    where = "." * node.level + (node.module or "")
    if node.level > 1 or node.module not in (siblings if node.level else modules):
        return f"imports from {where}"
    names = {one.name for one in node.names}
    unknown = names & set(siblings[node.module]) if node.level else names - modules[where]
    wrong = [one.name for one in node.names if one.name in unknown | REFUSED | {"*"} or _is_dunder(one.name)]
    return f"imports {wrong[0]} from {where}" if wrong else None


def _name_fault(node, file):
    """A builtin that opens, runs or looks into things; one that reads attributes, or a module, handed around."""
    if node.id in BUILTINS or _is_dunder(node.id):
        return f"names {node.id}"
    if node.id in ("getattr", "vars") and id(node) not in file.called:
        return f"hands {node.id} around"
    if node.id in file.modules and id(node) not in file.bases:
        return f"hands the module {node.id} around"
    return None


def _attribute_fault(node, file):
    text, module = ast.unparse(node), file.module_of(node.value)
    if module and not file.module_of(node):
        return None if node.attr in file.rules.modules.get(module, ()) else f"reaches {text}"
    if module:
        return None if id(node) in file.bases else f"hands the module {text} around"
    if node.attr in file.rules.names or _is_dunder(node.attr):
        return f"reaches {text}"
    if node.attr == "open":
        return f"reaches {text}: files are opened by PIL.Image.open alone"
    if node.attr == "load" and id(node) not in file.called_bare:
        return f"reaches {text}"  # an image's load() takes nothing; torch's and NumPy's take a file
    return None


def _getattr_fault(node, file):
    """Of another name than `self`, an attribute that is written out; of `self`, one of a list written out too."""
    owner, attribute = (*node.args, None, None)[:2]
    if isinstance(owner, ast.Name) and isinstance(attribute, ast.Constant):
        return f"reaches {attribute.value}" if attribute.value in REFUSED else None
    if getattr(owner, "id", None) == "self" and getattr(attribute, "id", None) in file.listed:
        return None
    return f"calls {ast.unparse(node)}"


def _is_dunder(name):
    return name.startswith("__") and name not in DUNDERS
