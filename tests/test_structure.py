"""What may import what, one definition of a setting, and the package as others install it."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from datafree.methods import METHODS

# From the top layer down: a package imports from the layers below it, and from itself.
LAYERS = """
    cli | deploy | results | api | runs | assemble | extras | distiller parallel | student | evaluation |
    repository | iho blg balance | neighbours | synthesis | samples | losses | networks | data | torch_utils |
    settings | methods dlw | errors models
"""
LAYERS = [layer.split() for layer in LAYERS.split("|")]
NOT_THE_PAPER = {"cli", "deploy", "results", "api", "runs", "assemble", "extras"}
# Names and numbers without imports: the settings are defined with them.
LEAVES = {"datafree.data.datasets", "datafree.networks.names"}


def modules():
    for path in sorted((ROOT / "datafree").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "models" not in parts and path.name != "__init__.py":
            yield ".".join(parts), ast.parse(path.read_text())


def imported(tree):
    """The modules of this project that a module names in imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "datafree":
            for alias in node.names:
                yield f"datafree.{alias.name}" if node.module == "datafree" else node.module


def package(module):
    return module.split(".")[1]


def test_imports_go_down_the_layers():
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for module, tree in modules():
        assert package(module) in layer, f"{module} has no layer"
        for target in set(imported(tree)) - LEAVES:
            if package(target) != package(module) and layer[package(target)] <= layer[package(module)]:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_the_core_imports_nothing_but_the_core():
    for module, tree in modules():
        if package(module) not in NOT_THE_PAPER:
            assert not {package(target) for target in imported(tree)} & NOT_THE_PAPER, module


def test_every_layer_exists_and_is_documented():
    page = (ROOT / "docs/development.md").read_text()
    packages = {package(module) for module, _ in modules()} | {"models"}
    assert packages == {name for names in LAYERS for name in names}
    assert not [name for name in packages if f"`{name}" not in page]


def test_an_epoch_is_read_on_one_screen():
    tree = dict(modules())["datafree.distiller"]
    (epoch,) = (node for node in ast.walk(tree) if getattr(node, "name", "") == "run_epoch")
    assert epoch.end_lineno - epoch.lineno < 30
    assert sum(isinstance(node, (ast.If, ast.IfExp)) for node in ast.walk(epoch)) <= 3


def test_no_test_file_imports_another():
    files = list((ROOT / "tests").rglob("test_*.py"))
    names = {path.stem for path in files}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                found = {getattr(node, "module", ""), *(alias.name for alias in node.names)}
                assert not found & names, f"{path.name}, line {node.lineno}"


def test_every_method_is_explained():
    page = (ROOT / "docs/methods.md").read_text()
    assert not [name for name in METHODS if f"`{name}`" not in page and f"**{name}**" not in page]


def test_the_components_know_nothing_of_settings_files_and_each_other():
    for module, tree in modules():
        if package(module) in ("dlw", "blg", "iho"):
            assert set(imported(tree)) <= {"datafree.neighbours"}


# The package


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the package was installed, without what it depends on."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("datafree", "models"):
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True)
    for path in (
        *ROOT.glob("requirements*.txt"),
        *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")),
    ):
        shutil.copy(path, folder / "source")
    words = "-m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation ./source"
    subprocess.run([sys.executable, *words.split()], cwd=folder, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_installed(code, site, cwd):
    # -I: neither this folder nor an installation in the environment is on the path.
    start = f"import sys; sys.path.insert(0, {str(site)!r}); sys.path.insert(0, {str(cwd)!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-c", start + code], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_an_installed_package_leaves_the_name_models_to_its_user(installed, tmp_path):
    (tmp_path / "models.py").write_text("mine = True\n")
    code = (
        "import datafree, datafree.models, models; "
        "assert models.mine and 'wrn16_1' in datafree.models.NAMES; "
        "assert str(datafree.__file__).startswith(sys.path[1]), datafree.__file__; "
        "network = datafree.models.create('wrn16_1', 10); print(type(network).__module__)"
    )
    done = run_installed(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "datafree.models.wide_resnet"


def test_every_file_of_the_package_is_installed(installed):
    here = {
        path.relative_to(ROOT) for path in (ROOT / "datafree").rglob("*.py") if "models" not in path.parts
    }
    here |= {Path("datafree/models") / path.name for path in (ROOT / "models").glob("*.py")}
    here |= {path.relative_to(ROOT) for path in (ROOT / "datafree/results").glob("*.[hcjm]*")}
    here |= {Path("datafree/py.typed")}
    assert not [str(path) for path in here if not (installed / path).is_file()]


def test_installed_commands_answer_from_any_folder(installed, tmp_path):
    entry = next(installed.glob("*.dist-info")) / "entry_points.txt"
    names = ["bsr", "train", "kd", "table", "report", "export"]
    commands = ["bsr" if name == "bsr" else f"bsr-{name}" for name in names]
    for name, command in zip(names, commands, strict=True):
        assert f"{command} = datafree.cli.{name}:main" in entry.read_text()
    code = (
        "import importlib\n"
        f"for name, command in zip({names}, {commands}):\n"
        "    sys.argv = [command, '--help']\n"
        "    try:\n"
        "        importlib.import_module(f'datafree.cli.{name}').main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, name\n"
    )
    done = run_installed(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall("^usage: (\\S+) ", done.stdout, re.MULTILINE) == commands
