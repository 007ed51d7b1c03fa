#!/usr/bin/env python
"""One page that shows what happened in a run, or in several side by side.

    python show_result/report.py run/bsr [run/other ...] [--output report.html]

The page holds everything in itself: it asks nothing of any server, and can be sent by mail or printed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli.report import main

if __name__ == "__main__":
    main()
