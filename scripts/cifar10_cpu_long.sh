#!/usr/bin/env bash
# How near to the teacher two CPU cores come in a few hours: bsr and fast_meta as in cifar10_cpu.sh, with 300 epochs of 160
# student steps. See there for the teacher, and common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

for method in bsr fast_meta; do
    row $method cifar10 resnet20 wrn16_1 --method $method --mean imagenet --g_steps 10 --adv 1.33 --epochs 300 \
        --warmup 20 --kd_steps 160 --ep_steps 160 --batch_size 128 --eval_every 20 --amp bf16 --device cpu \
        --reuse_teacher 1GB --teacher_ckpt "$teacher"
done
finish
