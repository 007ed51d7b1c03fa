#!/usr/bin/env bash
# BSR's rows: five pairs on cifar10 and on cifar100, and two 224 x 224 datasets. See common.sh.
source "$(dirname "$0")/common.sh"

for dataset in cifar10 cifar100; do
    for pair in "${PAIRS[@]}"; do
        read -r teacher student adv <<<"$pair"
        row bsr "$dataset" "$teacher" "$student" --method bsr --adv "$adv"
    done
done
for dataset in imagenette2 imagenet100; do
    row bsr "$dataset" resnet34_imagenet resnet18_imagenet --method bsr --adv 1.33 --batch_size 512
done
finish
