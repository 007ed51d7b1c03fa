#!/usr/bin/env python
"""Write what is derived from the settings: docs/flags.md and datafree/keywords.pyi. A test fails when they
are stale.

python scripts/derive.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datafree.kinds import Setting, settings_of
from datafree.methods import METHODS, published_settings
from datafree.settings import FIELDS, KDSettings, QuantizeSettings, Settings, TrainSettings

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "bsr_main.py": ("bsr", Settings, "distil a student without data"),
    "train_scratch.py": ("bsr-train", TrainSettings, "train a classifier on real images"),
    "vanilla_kd.py": ("bsr-kd", KDSettings, "knowledge distillation with real images"),
    "scripts/quantize.py": ("bsr-quantize", QuantizeSettings, "int8 without data"),
}


def flags_page() -> str:
    """docs/flags.md."""
    lines = [
        "# Flags",
        "",
        "Made by `make derive` from `datafree/settings.py`, where every setting is defined once. Dashes",
        "and underscores in names are the same. The other commands explain their few flags with `--help`.",
        "",
        "Traits: **r** a run can only be resumed with the same value; **t** runs with different values are",
        "different rows of a table; **l** `datafree.distill` takes it as a keyword argument.",
    ]
    for script, (command, owner, purpose) in SCRIPTS.items():
        lines += ["", f"## {script} (`{command}`): {purpose}"]
        group = None
        for setting in settings_of(owner):
            if setting.group != group:
                group = setting.group
                lines += ["", f"### {group[:1].upper()}{group[1:]}", ""]
                lines += ["| flag | default | meaning | traits |", "| --- | --- | --- | --- |"]
            lines.append(_row(setting, resumable=owner is Settings))
    lines += ["", "## Published settings of the methods", "", "Where they differ from the defaults:"]
    lines += ["", "| method | settings | settings of synthesis that it takes |", "| --- | --- | --- |"]
    published = dict(published_settings())
    for name, method in METHODS.items():
        takes = " ".join(f"`--{flag}`" for flag in method.takes)
        own = f"`{published[name]}`" if name in published else "the defaults"
        lines.append(f"| `{name}` | {own} | {takes} |")
    return "\n".join(lines) + "\n"


def _row(setting: Setting, resumable: bool) -> str:
    traits = setting.traits
    if traits.kind.switch == "on or off":
        flag = f"`--{setting.name}`, `--no-{setting.name}`"
    else:
        flag = ", ".join(f"`{name}`" for name in (f"--{setting.name}", *traits.also))
    marks = [("r", resumable and traits.identity), ("t", traits.table), ("l", resumable and traits.library)]
    letters = " ".join(letter for letter, on in marks if on)
    return f"| {flag} | {setting.default_text} | {traits.help} | {letters} |"


def keywords_stub() -> str:
    """datafree/keywords.pyi: the keyword arguments of `datafree.distill` for type checkers."""
    lines = [
        '"""Made by scripts/derive.py from datafree/settings.py: keyword arguments of `distill`."""',
        "",
        "from typing import TypedDict",
        "",
        "class Keywords(TypedDict, total=False):",
    ]
    for setting in FIELDS:
        if setting.traits.library:
            kind = setting.type if "None" in setting.type else f"{setting.type} | None"
            lines.append(f"    {setting.name}: {kind}")
    return "\n".join(lines) + "\n"


DERIVED = {"docs/flags.md": flags_page, "datafree/keywords.pyi": keywords_stub}


if __name__ == "__main__":
    for name, derive in DERIVED.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(derive(), encoding="utf-8")
        print(name)
