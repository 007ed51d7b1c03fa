"""Train a classifier on real data: a teacher for bsr_main.py, or a student as a yardstick.

    python train_scratch.py --model resnet34 --dataset cifar10 --batch-size 64 --lr 0.1

Writes checkpoints/pretrained/{dataset}_{model}.pth, where bsr_main.py looks for its teacher, a JSON file
beside it with the accuracy, and a folder with settings, metrics and log. `--resume` continues a training that
was stopped.
"""

from datafree.cli.train import main

if __name__ == "__main__":
    main()
