#!/usr/bin/env bash
# Sensitivity to DLW's two settings: resnet34 to resnet18 on cifar10, 28 runs. See common.sh.
source "$(dirname "$0")/common.sh"

point() { # oh_memory_size oh_step
    row "mz$1-step$2" cifar10 resnet34 resnet18 --method bsr --adv 1.33 --oh_memory_size "$1" --oh_step "$2"
}
for size in 2 3 4 5 6 7 9 10; do
    point $size 0.1
done
for step in 0.05 0.06 0.07 0.08 0.09 0.1 0.11 0.12 0.13 0.14 0.15 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1.0; do
    point 8 $step
done
finish
