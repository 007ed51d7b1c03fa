#!/usr/bin/env bash
# The twelve rows of BSR's tables: five pairs on cifar10 and cifar100, and two 224 x 224 datasets.
# Environment: DATA_ROOT (default data), SEEDS (default "0"), EXTRA (more flags), DRY_RUN=1 (print only).
set -euo pipefail
cd "$(dirname "$0")/.."

row() { # dataset teacher student adv [flags]
    local seed
    for seed in ${SEEDS:-0}; do
        # shellcheck disable=SC2206
        local command=(python -u bsr_main.py --method bsr --dataset "$1" --teacher "$2" --student "$3"
            --adv "$4" --warmup 20 --epochs 420 --data_root "${DATA_ROOT:-data}" --seed "$seed" "${@:5}"
            ${EXTRA:-})
        echo "${command[*]}"
        [ -n "${DRY_RUN:-}" ] || "${command[@]}"
    done
}

for dataset in cifar10 cifar100; do
    row "$dataset" resnet34 resnet18 1.33
    row "$dataset" vgg11 resnet18 1.0
    row "$dataset" wrn40_2 wrn16_1 1.1
    row "$dataset" wrn40_2 wrn40_1 1.1
    row "$dataset" wrn40_2 wrn16_2 1.1
done
for dataset in imagenette2 imagenet100; do
    row "$dataset" resnet34_imagenet resnet18_imagenet 1.33 --batch_size 512
done
