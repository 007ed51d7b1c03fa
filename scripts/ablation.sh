#!/usr/bin/env bash
# Each of BSR's components alone and in pairs, on five pairs of cifar10, and the other ways to set the weight of
# the pseudo-supervised loss. All three together are a row of bsr.sh. See common.sh.
source "$(dirname "$0")/common.sh"

for pair in "${PAIRS[@]}"; do
    read -r teacher student _ <<<"$pair"
    with() { row "$1" cifar10 "$teacher" "$student" --method bsr --adv 1.33 "${@:2}"; }
    with none --g_steps 2 --no-dlw --no-blg --no-iho
    with dlw --g_steps 5 --no-blg --no-iho
    with blg --g_steps 5 --no-dlw --no-iho
    with iho --g_steps 5 --no-dlw --no-blg
    with dlw-blg --g_steps 10 --no-iho
    with dlw-iho --g_steps 10 --no-blg
    with blg-iho --g_steps 10 --no-dlw
done
for mode in con_min con_max line curve; do
    row $mode cifar10 resnet34 resnet18 --method bsr --adv 1.33 --dlw_mode $mode
done
finish
