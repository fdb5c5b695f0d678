"""The allowed imports between packages: no cycle, and nothing imports from a command."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = "configuration", "modeling", "training", "hub_repos"
OF_DATA = {"configuration", "modeling", "training.errors"}
OF_TRAINING = OF_DATA | {f"training.{room}" for room in ("settings", "data", "fit", "measure", "records")}
ALLOWED = {  # besides a room's own files
    "configuration": set(),
    "modeling": {"configuration"},
    "training.errors": set(),
    "training.data": OF_DATA,
    "training.measure": OF_DATA | {"training.data"},
    "training.fit": OF_DATA | {"training.data", "training.measure"},
    "training.settings": OF_DATA | {"training.data", "training.fit"},
    "training.plan": OF_DATA | {f"training.{room}" for room in ("data", "fit", "measure", "settings")},
    "training.records": OF_DATA | {"training.data", "training.measure"},
    "hub_repos.repository": OF_TRAINING,
    "hub_repos.checks": OF_TRAINING | {"hub_repos.repository"},
    "hub_repos.publish": OF_TRAINING | {"hub_repos.repository", "hub_repos.checks", "hub_repos.page"},
    "hub_repos.conversion": OF_TRAINING,
    "hub_repos.inference": OF_TRAINING | {"hub_repos.repository"},
    "hub_repos.annotate": OF_TRAINING | {"hub_repos.repository", "hub_repos.inference"},
    "hub_repos.page": OF_TRAINING | {"hub_repos.repository"},
    "hub_repos.accuracy": OF_TRAINING,
    "hub_repos.segmentation_overlap": OF_TRAINING,
}


def modules():
    """Dotted name, without hub_unets, to path of every module but what runs where the project is not installed."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    paths = [path for path in paths if not {"published", "space_app"} & set(path.parts) and path.stem != "__init__"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imports(path):
    """Dotted names, without hub_unets, of the modules that a file imports, anywhere in it."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            names = [node.module, *(f"{node.module}.{name}" for name in names)]
        imported |= {name.removeprefix("hub_unets.") for name in names if name.startswith("hub_unets.")}
        assert not {name.split(".")[0] for name in names} & set(FOLDERS), f"{path}:{node.lineno}: import hub_unets..."
    return imported & modules().keys()


GRAPH = {name: imports(path) for name, path in modules().items()}


def room(module):
    """The package of a module (a key of ALLOWED); a command's own name where it belongs to none."""
    return next((name for name in ALLOWED if module == name or module.startswith(f"{name}.")), module)


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_a_module_imports_only_what_its_room_may(module):
    module_room = room(module)
    imported_rooms = {room(imported) for imported in GRAPH[module]} - {module_room}
    assert imported_rooms - ALLOWED.get(module_room, ALLOWED.keys()) == set()


def test_nothing_imports_from_a_command():
    commands = {name for name in GRAPH if name not in ALLOWED and room(name) == name}
    assert {"training.run", "training.sweep", "training.evaluate", "hub_repos.build", "hub_repos.cli"} <= commands
    assert {name: used for name, imported in GRAPH.items() if (used := imported & commands)} == {}


def test_imports_have_no_cycle():
    graph = dict(GRAPH)
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert graph == {}


def imported_at_start(module):
    """What importing a module imports, by the text of ours alone: names of other packages' modules."""
    found, waiting = {}, [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = set()
        for node in ast.parse(modules()[name].read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            ours = {name.removeprefix("hub_unets.") for name in names} & modules().keys()
            waiting += ours
            found[name] |= {name for name in names if not name.startswith("hub_unets.")}
    return set().union(*found.values())


SLOW = {"datasets", "pyarrow", "pandas", "matplotlib", "albumentations", "scipy", "transformers", "timm", "torch"}


def test_the_list_of_commands_imports_no_library():
    code = f"import sys; from hub_unets.hub_repos import cli; cli.main(['--help']); print({SLOW} & sys.modules.keys())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "set()"


def test_predicting_an_image_imports_neither_data_sets_nor_plots():
    roots = {name.split(".")[0] for name in imported_at_start("hub_repos.predict")}
    assert roots & SLOW == {"torch", "transformers", "scipy"}


def test_every_room_is_installed_and_explained():
    packages = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in sorted({path.parent for path in modules().values()}):
        name = ".".join(folder.relative_to(ROOT).parts)
        assert f'"hub_unets.{name}"' in packages, f"{name} is missing in pyproject.toml's packages"
        assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""')
