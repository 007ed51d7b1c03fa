#!/usr/bin/env bash
# bsr, bsr without IHO, fast_meta and nayer on CIFAR-100 with a small budget, over three hours of one core a run:
# EXTRA="--device cuda" for a GPU. The teacher is a network of OSI-AI (github.com/Lee-Gihun/MicroNet_OSI-AI), 78.57 % as
# loaded here: TEACHER is its class in its file, osi_cifar100.py:Net, and TEACHER_CKPT the weights. Not as published, for
# this teacher: --bn 1, since its BatchNorm distance is ten times that of resnet20; thirty generator steps for all; --lr 1,
# since its logits are so small that the loss hardly moves the student. See common.sh.
source "$(dirname "$0")/common.sh"

teacher=$(absolute "${TEACHER:-checkpoints/pretrained/osi_cifar100.py:Net}")
off "${SMOKE:-}" || teacher=wrn40_2
hundred() { # name method [flags]
    row "$1" cifar100 "$teacher" wrn16_2 --method "$2" \
        --mean 0.5071,0.4867,0.4408 --std 0.2675,0.2565,0.2761 --epochs 80 --warmup 10 --kd_steps 120 --ep_steps 120 \
        --batch_size 128 --lr 1 --bn 1 --g_steps 30 --eval_every 10 --amp bf16 --device cpu --reuse_teacher 1GB \
        --teacher_ckpt "$(absolute "${TEACHER_CKPT:-checkpoints/pretrained/osi_cifar100.pth}")" "${@:3}"
}
SEEDS=${SEEDS:-0 1 2}
hundred bsr bsr
hundred dlw-blg bsr --no-iho
hundred fast_meta fast_meta
hundred nayer nayer --synthesis_batch_size 128 --g_loops 1 --gwp_loops 1
finish
