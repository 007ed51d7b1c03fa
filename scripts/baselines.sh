#!/usr/bin/env bash
# Eight methods that BSR is compared with (nayer has nayer.sh), on five pairs of cifar10 and of cifar100; fast_meta,
# cmi and deepinv also with the other numbers of generator steps for which figures are printed. See common.sh.
source "$(dirname "$0")/common.sh"

for dataset in cifar10 cifar100; do
    for pair in "${PAIRS[@]}"; do
        read -r teacher student adv <<<"$pair"
        with() { row "$1" "$dataset" "$teacher" "$student" --method "$2" "${@:3}"; }
        with fast_meta fast_meta --adv "$adv"
        with fast_meta-2 fast_meta --adv "$adv" --g_steps 2
        with fast_meta-5 fast_meta --adv "$adv" --g_steps 5
        with fast fast --adv "$adv"
        with cmi-500 cmi --g_steps 500
        with deepinv-2000 deepinv --g_steps 2000
        for method in cmi deepinv dafl zskt dfad dfq; do
            with $method $method
        done
    done
done
finish
