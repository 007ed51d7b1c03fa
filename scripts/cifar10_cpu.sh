#!/usr/bin/env bash
# Ten methods on the original CIFAR-10 with the same student, student steps (4,200) and batch, some twenty minutes a run
# on one CPU core. The teacher is the public resnet20 of akamaster (github.com/akamaster/pytorch_resnet_cifar10),
# resnet20-12fca82f.th (91.73 %); TEACHER is its file. See common.sh.
source "$(dirname "$0")/common.sh"
teacher=$(absolute "${TEACHER:-checkpoints/pretrained/resnet20-12fca82f.th}")
same=(--teacher_ckpt "$teacher" --mean imagenet --batch_size 128 --kd_steps 60 --ep_steps 60 --eval_every 10
    --amp bf16 --device cpu)

# Stored samples: ten epochs of 128 before the student starts, 10,240 in all. The published steps of cmi (200) and
# deepinv (1,000) would take hours.
stored() { # method [flags]
    row "$1" cifar10 resnet20 wrn16_1 "${same[@]}" --method "$1" --epochs 80 --warmup 10 --reuse_teacher 400MB "${@:2}"
}
# Fresh samples, no warm-up.
fresh() { # method [flags]
    row "$1" cifar10 resnet20 wrn16_1 "${same[@]}" --method "$1" --epochs 70 "${@:2}"
}
fast=(--g_steps 10 --adv 1.33)
SEEDS=${SEEDS:-0 1 2 3 4} stored bsr "${fast[@]}"
SEEDS=${SEEDS:-0 1 2 3 4} stored fast_meta "${fast[@]}"
SEEDS=${SEEDS:-0 1 2}
stored fast "${fast[@]}"
finish
