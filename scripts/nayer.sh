#!/usr/bin/env bash
# The published rows of NAYER: five pairs on cifar10 and cifar100 with 120, 220 and 320 epochs, and tiny_imagenet. The
# printed figures (NAYER_300) are of 320. CLIP's text features of the classes are a file of yours: EMBEDDINGS=folder has
# cifar10.npy, cifar100.npy and tiny_imagenet.npy; without it the rows of the teacher's last layer are used. See
# common.sh.
source "$(dirname "$0")/common.sh"

with() { # epochs dataset teacher student
    local embedding=()
    [ -z "${EMBEDDINGS:-}" ] || embedding=(--label_embedding "$(absolute "$EMBEDDINGS")/$2.npy")
    row "nayer-$1" "$2" "$3" "$4" --method nayer --epochs "$1" "${embedding[@]}"
}
for dataset in cifar10 cifar100; do
    for pair in "${PAIRS[@]}"; do
        read -r teacher student _ <<<"$pair"
        for epochs in 120 220 320; do
            with $epochs $dataset "$teacher" "$student"
        done
    done
done
for epochs in 120 220 320; do
    with $epochs tiny_imagenet resnet34 resnet18
done
finish
