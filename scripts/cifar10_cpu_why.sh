#!/usr/bin/env bash
# Does balance matter where the generator is imbalanced? bsr and fast_meta as in cifar10_cpu.sh, with two and with five
# generator steps, at the learning rates published for these (Fast-Meta). Does alpha rise too early, or too far? bsr as there,
# with an alpha of 1 from the end of the warm-up on, and with one that comes to 1 at the end only. See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

steps() { # steps lr_g lr_z
    local method
    for method in bsr fast_meta; do
        row "$method-$1" "${pair[@]}" "${budget[@]}" --method $method --g_steps "$1" --lr_g "$2" --lr_z "$3" --adv 1.33
    done
}
SEEDS=${SEEDS:-0 1}
for mode in con_max curve; do
    row bsr-$mode "${pair[@]}" "${budget[@]}" --method bsr --g_steps 10 --adv 1.33 --dlw_mode $mode
done
steps 2 5e-3 0.015
steps 5 3e-3 0.01
finish
