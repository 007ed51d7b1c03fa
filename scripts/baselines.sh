#!/usr/bin/env bash
# The eight methods that BSR is compared with, on five pairs of cifar10. See common.sh.
source "$(dirname "$0")/common.sh"

for pair in "${PAIRS[@]}"; do
    read -r teacher student adv <<<"$pair"
    for method in fast_meta fast; do
        row $method cifar10 "$teacher" "$student" --method $method --adv "$adv"
    done
    for method in cmi deepinv dafl zskt dfad dfq; do
        row $method cifar10 "$teacher" "$student" --method $method
    done
done
finish
