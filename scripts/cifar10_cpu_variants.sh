#!/usr/bin/env bash
# What would put balance ahead? One flag more than in cifar10_cpu.sh in each row, all else as there (dlw-mixup: fast_meta with
# two); fast_meta-mixup and nayer-mixup tell what is owed to mixup alone. See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

fast=(--g_steps 10 --adv 1.33)
nayer=(--synthesis_batch_size 128 --g_loops 1 --gwp_loops 1)
variant() { # name method [flags]
    row "$1" "${pair[@]}" --method "$2" "${@:3}"
}
SEEDS=${SEEDS:-0 1 2 3 4} variant nayer-mixup nayer "${asking[@]}" "${nayer[@]}" --mixup # the best of two seeds, and its control
SEEDS=${SEEDS:-0 1 2 3 4} variant fast_meta-mixup fast_meta "${asking[@]}" "${fast[@]}" --mixup
SEEDS=${SEEDS:-0 1}
variant bsr-mixup bsr "${asking[@]}" "${fast[@]}" --mixup
variant dlw-mixup fast_meta "${asking[@]}" "${fast[@]}" --dlw --mixup
variant nayer-dlw nayer "${budget[@]}" "${nayer[@]}" --dlw
finish
