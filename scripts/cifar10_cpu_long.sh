#!/usr/bin/env bash
# Ten times the student steps of cifar10_cpu.sh: 300 epochs of 160, about two hours a run on one CPU core; and KD with the
# training images for as many steps. See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

long() { # method [flags]
    row "$1" "${pair[@]}" --method "$1" --epochs 300 --warmup 20 --kd_steps 160 --ep_steps 160 --eval_every 20 \
        --reuse_teacher 1GB "${@:2}"
}
long bsr --g_steps 10 --adv 1.33
long fast_meta --g_steps 10 --adv 1.33
long nayer --synthesis_batch_size 128 --g_loops 1 --gwp_loops 1
row nayer-mixup "${pair[@]}" --method nayer --epochs 300 --warmup 20 --kd_steps 160 --ep_steps 160 --eval_every 20 \
    --synthesis_batch_size 128 --g_loops 1 --gwp_loops 1 --mixup
kd_row kd-real "${pair[@]}" --epochs 115 --lr 0.2 # 44,965 steps
finish
