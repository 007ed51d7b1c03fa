"""Distil a student from a frozen teacher without its training data (BSR).

    python bsr_main.py --dataset cifar10 --teacher resnet34 --student resnet18

The settings are in datafree/settings.py; the method is in datafree/, an epoch of it in datafree/distiller.py.
"""

from datafree.cli.bsr import main

if __name__ == "__main__":
    main()
