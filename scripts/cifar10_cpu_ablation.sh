#!/usr/bin/env bash
# Each of BSR's components alone and in pairs, as in cifar10_cpu.sh and with ten generator steps throughout: the published
# rows (ablation.sh) have 2, 5 or 10 by the number of components, which mixes the two effects. No component at all is
# fast_meta, all three are bsr: cifar10_cpu.sh has both. See there for the teacher, and common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

with() { # name [flags]
    row "$1" cifar10 resnet20 wrn16_1 --method bsr --mean imagenet --g_steps 10 --adv 1.33 --epochs 80 --warmup 10 \
        --kd_steps 60 --ep_steps 60 --batch_size 128 --eval_every 10 --amp bf16 --device cpu --reuse_teacher 400MB \
        --teacher_ckpt "$teacher" "${@:2}"
}
SEEDS=${SEEDS:-0 1 2}
with dlw --no-blg --no-iho
with blg --no-dlw --no-iho
with iho --no-dlw --no-blg
with dlw-blg --no-iho
with dlw-iho --no-blg
with blg-iho --no-dlw
finish
