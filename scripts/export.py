#!/usr/bin/env python
"""Ship the student of a finished run as ONNX, torch.export or safetensors, with its normalisation inside and
a model card.

    python scripts/export.py run/bsr --format onnx

What is written takes images (N, C, H, W) in [0, 1] and gives logits. It is compared with PyTorch's student on
random and on synthesised images before the command ends.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli.export import main

if __name__ == "__main__":
    main()
