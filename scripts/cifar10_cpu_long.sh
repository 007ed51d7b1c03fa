#!/usr/bin/env bash
# How near to the teacher two CPU cores come in a few hours: bsr, fast_meta and nayer as in cifar10_cpu.sh, with 300 epochs of 160
# student steps. See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

long() { # method [flags]
    row "$1" "${pair[@]}" --method "$1" --epochs 300 --warmup 20 --kd_steps 160 --ep_steps 160 --eval_every 20 \
        --reuse_teacher 1GB "${@:2}"
}
long bsr --g_steps 10 --adv 1.33
long fast_meta --g_steps 10 --adv 1.33
long nayer --synthesis_batch_size 128 --g_loops 1 --gwp_loops 1
finish
