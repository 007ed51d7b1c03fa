#!/usr/bin/env python
"""Write docs/flags.md from the settings. A test fails when it is stale.

python scripts/derive.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datafree.methods import METHODS, published_settings
from datafree.settings import KDSettings, QuantizeSettings, Settings, TrainSettings, settings_of

PAGE = Path(__file__).resolve().parent.parent / "docs/flags.md"
COMMANDS = (  # the letters are those of `Setting.uses` that have an effect
    ("bsr_main.py (`bsr`): distil a student without data", Settings, "rtl"),
    ("train_scratch.py (`bsr-train`): train a classifier on real images", TrainSettings, "r"),
    ("vanilla_kd.py (`bsr-kd`): knowledge distillation with real images", KDSettings, "rt"),
    ("scripts/quantize.py (`bsr-quantize`): int8 without data", QuantizeSettings, ""),
)
START = """# Flags

Written by `make derive` from `datafree/settings.py`, where every setting is defined once. Dashes and
underscores in names are the same. A switch `--x` is turned off with `--no-x` or `--x False`. The other
commands explain their few flags with `--help`.

In the last column, **r**: a run can only be resumed with the same value; **t**: runs with different values
are different rows of a table; **l**: `datafree.distill` takes it as a keyword argument.
"""
END = """
## Published settings of the methods

Where they differ from the defaults:

| method | settings | settings of synthesis that it takes |
| --- | --- | --- |
"""


def flags_page() -> str:
    """The text of docs/flags.md."""
    page = START
    for title, owner, letters in COMMANDS:
        page += f"\n## {title}\n"
        settings = settings_of(owner)
        for group in dict.fromkeys(one.group for one in settings):
            page += f"\n### {group[0].upper()}{group[1:]}\n\n| flag | meaning | |\n"
            page += "| --- | --- | --- |\n"
            for one in settings:
                if one.group == group:
                    flags = f"`--{one.name}`" + (f", `{one.also}`" if one.also else "")
                    uses = " ".join(letter for letter in one.uses if letter in letters)
                    page += f"| {flags} | {one.help} | {uses} |\n"
    page += END
    for name, published in published_settings().items():
        takes = " ".join(f"`--{flag}`" for flag in METHODS[name].takes)
        page += f"| `{name}` | {f'`{published}`' if published else ''} | {takes} |\n"
    return page


if __name__ == "__main__":
    PAGE.write_text(flags_page(), encoding="utf-8")
    print(PAGE)
