#!/usr/bin/env bash
# How near to the teacher two CPU cores come in a few hours: bsr and fast_meta as in cifar10_cpu.sh, with 300 epochs of 160
# student steps. See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

for method in bsr fast_meta; do
    row $method "${pair[@]}" --method $method --g_steps 10 --adv 1.33 --epochs 300 --warmup 20 --kd_steps 160 \
        --ep_steps 160 --eval_every 20 --reuse_teacher 1GB
done
finish
