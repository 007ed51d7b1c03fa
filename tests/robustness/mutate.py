"""Change one line of the code at a time, and check that a test notices.

    python tests/robustness/mutate.py [--only TEXT] [--jobs 2]

Each mutant is applied to a copy of the project, in which the tests of its module run. A mutant that survives
is a line that could be wrong without anybody noticing."""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
CACHES = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
LARGE = {"run", "data", "results", "checkpoints"}  # at the top


def left_out(folder: str, names: list[str]) -> set[str]:
    """What a copy of the project does not need."""
    return CACHES(folder, names) | (LARGE & set(names) if Path(folder) == ROOT else set())


class Mutant(NamedTuple):
    where: str  # module below datafree/, and the function or class: "dlw:DynamicLossWeight.update"
    old: str  # occurs once there
    new: str
    tests: str = ""  # pytest's arguments; by default the test file of the module

    def apply(self, tree: Path) -> tuple[Path, str]:
        """Write the change to a copy of the project; returns the file and its text before."""
        module, _, name = self.where.partition(":")
        file = tree / "datafree" / f"{module.replace('.', '/')}.py"
        text = file.read_text(encoding="utf-8")
        part = _source(text, name) if name else text
        assert part.count(self.old) == 1, f"{self}: found {part.count(self.old)} times"
        assert text.count(part) == 1
        file.write_text(text.replace(part, part.replace(self.old, self.new)), encoding="utf-8")
        return file, text

    @property
    def arguments(self) -> list[str]:
        files, _, keyword = (self.tests or self.where.partition(":")[0].split(".")[-1]).partition(" -k ")
        words = [f"tests/test_{name}.py" for name in files.split()]
        return [*words, "-k", keyword] if keyword else words


def _source(text: str, name: str) -> str:
    """The lines of a function or class, such as `DynamicLossWeight.update`."""
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = next(n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == part)
    return "".join(text.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno])


def read_mutants() -> list[Mutant]:
    """The mutants of `mutants.txt`."""
    lines = Path(__file__).with_name("mutants.txt").read_text(encoding="utf-8").splitlines()
    return [Mutant(*line.split(" ~> ")) for line in lines if line and not line.startswith("#")]


def killed(mutant: Mutant, tree: Path) -> bool:
    """Whether a test fails with the mutant in a copy of the project."""
    file, text = mutant.apply(tree)
    words = [sys.executable, *"-m pytest -x -q -p no:cacheprovider".split(), *mutant.arguments]
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode in (0, 1, 2), f"{mutant}: no such test\n{done.stdout}"
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutants with this text in their place")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [mutant for mutant in read_mutants() if args.only in mutant.where]
    survived = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trees: Queue[Path] = Queue()
        for number in range(args.jobs):
            trees.put(shutil.copytree(ROOT, Path(folder, str(number)), ignore=left_out, symlinks=True))

        def run(mutant: Mutant) -> None:
            tree = trees.get()
            try:
                noticed = killed(mutant, tree)
            finally:
                trees.put(tree)
            line = f"{mutant.where}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}"
            print("killed  " if noticed else "SURVIVED", line, flush=True)
            if not noticed:
                survived.append(line)

        list(pool.map(run, chosen))
    print(f"{len(chosen) - len(survived)} of {len(chosen)} killed")
    for line in sorted(survived):
        print("survived", line)


if __name__ == "__main__":
    main()
