#!/usr/bin/env python
"""Quantise a network to int8 (ONNX) without its data.

    python scripts/quantize.py --teacher resnet20 --teacher_ckpt resnet20.th --img_size 32 --mean imagenet

Images to calibrate with are made from the network alone. --dataset or --eval_folder only serve to judge.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datafree.cli.quantize import main

if __name__ == "__main__":
    main()
