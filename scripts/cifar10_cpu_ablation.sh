#!/usr/bin/env bash
# Each of BSR's components alone and in pairs, as in cifar10_cpu.sh and with ten generator steps throughout: the published
# rows (ablation.sh) have 2, 5 or 10 by the number of components, which mixes the two effects. No component at all is
# fast_meta, all three are bsr: cifar10_cpu.sh has both. See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

with() { # name [flags]
    row "$1" "${pair[@]}" "${budget[@]}" --method bsr --g_steps 10 --adv 1.33 "${@:2}"
}
SEEDS=${SEEDS:-0 1 2}
with dlw --no-blg --no-iho
with blg --no-dlw --no-iho
with iho --no-dlw --no-blg
with dlw-blg --no-iho
with dlw-iho --no-blg
with blg-iho --no-dlw
finish
