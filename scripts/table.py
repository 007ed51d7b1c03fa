#!/usr/bin/env python
"""Tables of finished runs as the papers print them, with seeds, spread and the published figures.

    python scripts/table.py run/bsr run/baselines
    python scripts/table.py run/digits --format markdown --compare bsr fast_meta

`last` is the accuracy after the last epoch; `best` is the highest over epochs, chosen on test data. After
each mean stands the standard deviation over seeds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli.table import main

if __name__ == "__main__":
    main()
