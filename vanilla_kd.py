"""Knowledge distillation with real images: the yardsticks of data-free distillation.

    python vanilla_kd.py --dataset cifar10 --teacher resnet34 --student resnet18
    python vanilla_kd.py --dataset cifar10 --teacher resnet34 --student resnet18 --images FOLDER

The first uses the training images, as data-free methods cannot: their upper yardstick. The second uses any
images below a folder: another domain's, which is the lower one, or the samples that a run has exported
(`bsr_main.py --export_repository`).
"""

from datafree.cli.kd import main

if __name__ == "__main__":
    main()
