#!/usr/bin/env bash
# bsr, fast_meta and nayer with the same number of images: each makes 128 an epoch and keeps 2,500 of them, from before
# its student starts to the end (bsr a few fewer, which IHO removes after the newest have come), and each student takes
# the same steps. CIFAR-10; the teacher is the public resnet20 of akamaster (github.com/akamaster/pytorch_resnet_cifar10),
# resnet20-12fca82f.th (91.73 %); TEACHER is its file. See common.sh.
source "$(dirname "$0")/common.sh"

teacher=$(absolute "${TEACHER:-checkpoints/pretrained/resnet20-12fca82f.th}")
same=(--teacher_ckpt "$teacher" --mean imagenet --batch_size 128 --synthesis_batch_size 128 --max_samples 2500
    --epochs 80 --warmup 20 --kd_steps 60 --ep_steps 60 --adv 1.33 --eval_every 10 --amp auto --reuse_teacher 200MB)
equal() { # name method [flags]
    row "$1" cifar10 resnet20 wrn16_1 "${same[@]}" --method "$2" "${@:3}"
}
equal bsr bsr
equal fast_meta fast_meta
equal nayer nayer --g_loops 1 --gwp_loops 1
equal nayer-bsr nayer --g_loops 1 --gwp_loops 1 --dlw --blg --iho
finish
