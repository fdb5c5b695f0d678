import re

import pytest

from hub_unets.hub_repos.checks.code_rules import ENDPOINT_RULES, check_code, check_source
from hub_unets.hub_repos.repository.code import code_files, copy_code
from tests.variants import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variants_published_code_keeps_to_the_rules(variant, tmp_path):
    copy_code(variant, tmp_path)
    assert len(list(tmp_path.glob("*.py"))) == len(code_files(variant))
    check_code(tmp_path)


def test_every_allowed_name_is_one_that_published_code_needs(tmp_path):
    for variant in VARIANTS:
        copy_code(variant, tmp_path)
    code = "\n".join(path.read_text() for path in tmp_path.glob("*.py"))
    modules = ENDPOINT_RULES.modules
    assert [(module, name) for module in modules for name in modules[module] if not used(module, name, code)] == []


def used(module, name, code):
    known_as = {"numpy": "np", "torch.nn.functional": "F"}.get(module, module.rpartition(".")[2])
    return re.search(rf"\b{known_as}\.{name}\b|from {module} import .*\b{name}\b", code)


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "import os.path as math",
        "import subprocess, math",
        "import torch.hub",
        "from torch import load",
        "from torch import hub",
        "from torch.utils import cpp_extension",
        "from timm.models import hub",
        "from numpy import *",
        "from . import layers",
        "from .unknown import x",
        "from .layers import torch",
        "from ..layers import x",
        "from urllib.request import urlopen",
        "from math import __loader__",
        "__import__('os')",
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'exec')",
        "globals()['x']",
        "open('x')",
        "run = open",
        "__builtins__",
        "torch.load('x')",
        "run = torch.load",
        "model.load(path='x')",
        "np.load('x')",
        "torch.save(x, 'x')",
        "image.save('x')",
        "torch.hub.load('a', 'b')",
        "torch.os.remove('x')",
        "torch.jit.load('x')",
        "np.fromfile('x')",
        "Path('x').open()",
        "Path('x').write_text('x')",
        "Path('x').read_bytes()",
        "functools.sys.modules",
        "().__class__.__subclasses__()",
        "x.__globals__",
        "x.__dict__",
        "getattr(math, name)",
        "getattr(torch, 'load')('x')",
        "getattr(x, '_' + '_globals_' + '_')",
        "vars(x)['__globals__']",
        "setattr(x, 'a', 1)",
        "AutoModel.from_pretrained('a/b')",
        "import base64",
        "from io import BytesIO",
        "def __del__(self): pass",
        "def __getattr__(self, name): pass",
        "breakpoint()",
        "import torch; torch.from_file('x', True, 1)",
        "import torch; torch.distributed.TCPStore",
        "import torch; torch.onnx.export",
        "import torch; other = torch",
        "import torch.nn.functional as F; F.torch",
        "from torch import nn; nn.modules.module.torch",
        "from torch import nn; nn.init.torch",
        "from torch import nn; run(nn.init)",
        "from torch import from_file",
        "import numpy as np; np.testing.runstring('x', {})",
        "import numpy as np; np.lib.format",
        "from transformers import pipeline",
        "from transformers import dynamic_module_utils",
        "from timm.models import load_checkpoint",
        "from timm import models",
        "from typing import get_type_hints",
        "from functools import update_wrapper",
        "from PIL import ImageGrab",
        "Image.open('x').show()",
        "from pathlib import Path as Image; Image.open(Image('x'), 'w')",
        "from PIL import Image; Image = other; Image.open('x')",
        "array.dump('x')",
        "tensor.untyped_storage().from_file('x', True, 1)",
        "self.fetch_images('x')",
        "(x for x in ()).gi_frame.f_builtins['ev' + 'al']",
        "vars()['_' + '_builtins_' + '_']",
        "vars(x)",
        "read = vars",
        "read = getattr",
        "map(getattr, [math], ['x'])",
        "getattr(self, name)",
        "getattr(self, '_' + '_class_' + '_')",
        "for name in names: getattr(self, name)",
        "for name in ('hub',): getattr(self, name)",
        "for name in ('a',): getattr(other, name)",
        "for name in ('a',): name = other; getattr(self, name)",
        "getattr(self, 'hub')",
        "type(x).mro()",
    ],
)
def test_what_reaches_out_is_refused_with_its_line(line):
    with pytest.raises(ValueError, match=r"x\.py:2: "):
        check_source(f"import math\n{line}\n", "x.py", {"layers": {"torch": "torch"}})


@pytest.mark.parametrize(
    "line",
    [
        "from .layers import x",
        "import torch.nn.functional as F",
        "from PIL import Image; Image.open(path)",
        "opened.load()",
        "for field in ('depth', 'width'): getattr(self, field)",
        "for field, choices in (('padding', ('same',)),): getattr(self, field)",
        "vars(self)",
        "import torch; torch.compiler.is_compiling()",
        "from torch import nn; nn.init.zeros_(bias)",
        "from PIL import Image; Image.Resampling.NEAREST",
        "getattr(module, 'keeps_own_init', False)",
        "super().__init__()",
        "def __init__(self): pass",
        "type(error).__name__",
    ],
)
def test_what_published_code_does_is_allowed(line):
    check_source(f"import math\n{line}\n", "x.py", {"layers": {"torch": "torch"}})


def test_a_pattern_reaches_no_attribute():
    with pytest.raises(ValueError, match=r"x\.py:1: matches patterns"):
        check_source("match x:\n    case object(__globals__=y):\n        pass\n", "x.py")


def test_an_endpoints_handler_may_load_and_write_pictures_and_no_more():
    source = "from io import BytesIO\nAutoModel.from_pretrained(folder)\nimage.save(BytesIO(), 'PNG')\n"
    check_source(source, "handler.py")
    for line in ("import os", "import requests", "from io import FileIO", "open('x')", "torch.load('x')"):
        with pytest.raises(ValueError, match=r"handler\.py:4: "):
            check_source(source + line, "handler.py")
