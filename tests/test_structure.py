"""What may import what, one definition of a setting, and the package as others install it."""

import ast
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_here
from making import flags
from test_methods import classifier
from test_scripts import assert_refused

import datafree
from datafree.data.augment import Augment, Normalize
from datafree.errors import UserError
from datafree.methods import METHODS
from datafree.models.generator import Generator
from datafree.results.read import FinishedRun
from datafree.synthesis.base import SynthesisInputs
from datafree.synthesis.create import create_synthesizer

# From the top layer down: a package imports from the layers below it, and from itself.
LAYERS = [
    ["cli"],
    ["deploy"],
    ["results"],
    ["api"],
    ["runs"],
    ["assemble"],
    ["extras"],
    ["distiller"],
    ["student"],
    ["evaluation"],
    ["repository"],
    ["iho", "blg", "balance"],
    ["neighbours"],
    ["synthesis"],
    ["samples"],
    ["losses"],
    ["networks"],
    ["data"],
    ["torch_utils"],
    ["settings"],
    ["methods", "dlw"],
    ["errors", "models"],
]
# Names of things, which need nothing: the settings are defined with them.
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


def room(module):
    return module.split(".")[1]


def test_imports_go_down_the_floors():
    floor = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for module, tree in modules():
        assert room(module) in floor, f"{module} has no floor"
        for target in set(imported(tree)) - LEAVES:
            if room(target) != room(module) and floor[room(target)] <= floor[room(module)]:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_every_room_of_the_list_is_there_and_is_documented():
    page = (ROOT / "docs/development.md").read_text()
    rooms = {room(module) for module, _ in modules()} | {"models"}
    assert rooms == {name for names in LAYERS for name in names}
    assert not [name for name in rooms if f"`{name}" not in page]


def test_every_method_is_explained():
    page = (ROOT / "docs/methods.md").read_text()
    assert not [name for name in METHODS if f"`{name}`" not in page and f"**{name}**" not in page]


def test_the_components_know_nothing_of_settings_files_and_each_other():
    for module, tree in modules():
        if room(module) in ("dlw", "blg", "iho"):
            assert set(imported(tree)) <= {"datafree.neighbours"}


def test_a_run_older_than_a_setting_has_its_default():
    run = FinishedRun(Path("x"), {"method": "bsr"}, {})
    assert run.setting("oh_memory_size") == 8


class Watched:
    """Settings that note what is asked of them."""

    def __init__(self, settings):
        self.settings, self.asked = settings, set()

    def __getattr__(self, name):
        self.asked.add(name)
        return getattr(self.settings, name)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_settings_that_its_synthesizer_asks_for(method):
    teacher, student = classifier(0).requires_grad_(False), classifier(1)
    augment = Augment(Normalize((0.5,) * 3, (0.5,) * 3), flip=True)
    rng = torch.Generator().manual_seed(0)
    context = SynthesisInputs(teacher, student, augment, (3, 8, 8), rng, autocast=nullcontext)
    watched = Watched(flags("--method", method, "--g_steps", 1, "--warmup", 0, "--is_maml", 1))
    synthesizer = create_synthesizer(context, watched)
    synthesizer.calls = 119  # so that the next one draws layers anew, where a method does
    targets = synthesizer.targets(4, lambda count: torch.zeros(count, dtype=torch.long))
    synthesizer.synthesize(targets, 0.5)
    elsewhere = {"oh", "cmi_init"}  # asked for by the distiller and by the run
    common = {"method", "warmup", "blg", "rounds", "synthesis_batch_size"}
    assert watched.asked - common == set(METHODS[method].takes) - elsewhere


@pytest.mark.parametrize("size", [8, 13, 30, 299])
def test_a_generator_makes_images_of_any_size(size):
    images = Generator(nz=4, ngf=2, img_size=size)(torch.randn(2, 4))
    assert images.shape == (2, 3, size, size)


def test_distillation_runs_at_an_odd_size():
    from making import FEW, small

    _, metrics = datafree.distill(small(0), small(1), **{**FEW, "img_size": 13})
    assert metrics[-1]["repository"] == 42
    with pytest.raises(UserError, match="from 8 to 2048"):
        datafree.distill(small(0), small(1), **{**FEW, "img_size": 7})


def test_one_line_says_which_program_refused(tmp_path):
    assert_refused(
        run_here("scripts/table.py", "nowhere", cwd=tmp_path), "table.py: error: no run in nowhere"
    )


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
    start = f"import sys; sys.path.insert(0, {str(site)!r}); sys.path.insert(0, {str(cwd)!r}); "
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


COMMANDS = ["bsr", "train", "kd", "table", "report", "export"]


@pytest.mark.parametrize("name", COMMANDS)
def test_installed_commands_answer_from_any_folder(name, installed, tmp_path):
    entry = next(installed.glob("*.dist-info")) / "entry_points.txt"
    command = "bsr" if name == "bsr" else f"bsr-{name}"
    assert f"{command} = datafree.cli.{name}:main" in entry.read_text()
    code = f"import datafree.cli.{name} as cli; sys.argv = [{command!r}, '--help']; cli.main()"
    done = run_installed(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command} ")
