#!/usr/bin/env bash
# Does BSR lose by the images that IHO removes? With --refill as many are stored at every epoch as by the methods without
# IHO, of which cifar10_cpu.sh has fast_meta and nayer: bsr, and nayer with the three components. Same student steps, and
# all else as there (no layer is drawn anew in any of them: the others end before it). See common.sh.
source "$(dirname "$0")/common.sh"
public_resnet20

equal() { # name method [flags]
    row "$1" "${pair[@]}" "${budget[@]}" --method "$2" --refill "${@:3}"
}
SEEDS=${SEEDS:-0 1 2}
equal bsr bsr --g_steps 10 --adv 1.33 --reset_l0 0
equal nayer-bsr nayer --synthesis_batch_size 128 --g_loops 1 --gwp_loops 1 --dlw --blg --iho
finish
