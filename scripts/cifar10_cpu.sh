#!/usr/bin/env bash
# Ten methods on the original CIFAR-10 with the same teacher, student, student steps (4,200) and batch, ten to
# forty minutes a run on one CPU core. See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

stored() { # method [flags]
    row "$1" "${pair[@]}" "${budget[@]}" --method "$1" "${@:2}"
}
# Fresh samples for every step, and no warm-up.
fresh() { # name method [flags]
    row "$1" "${pair[@]}" --method "$2" --epochs 70 --ep_steps 60 --eval_every 10 "${@:3}"
}
fast=(--g_steps 10 --adv 1.33)
SEEDS=${SEEDS:-0 1 2 3 4} stored bsr "${fast[@]}"
SEEDS=${SEEDS:-0 1 2 3 4} stored fast_meta "${fast[@]}"
SEEDS=${SEEDS:-0 1 2 3 4} stored nayer --synthesis_batch_size 128 --g_loops 1 --gwp_loops 1
SEEDS=${SEEDS:-0 1 2}
stored fast "${fast[@]}"
# The published steps, 200 and 1,000, would take hours; steps and learning rates as in digits.sh.
stored cmi --g_steps 20 --lr_g 5e-3 --lr_z 1e-2
stored deepinv --g_steps 60
for method in dafl zskt dfad dfq; do
    fresh $method $method
done
# By their adversarial losses alone the generators of these two lose the classes at so small a budget; with the terms of
# digits.sh.
fresh zskt-balance zskt --balance 5 --bn 1
fresh dfad-balance dfad --balance 5
# KD with the 50,000 training images, and with as many of noise: 11 passes are 4,301 steps.
kd_row kd-real "${pair[@]}" --epochs 11 --lr 0.2
kd_row kd-noise "${pair[@]}" --epochs 11 --lr 0.2 --transfer_set noise
finish
