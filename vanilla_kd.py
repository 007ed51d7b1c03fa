"""Knowledge distillation with real images: the yardsticks of data-free distillation.

    python vanilla_kd.py --dataset cifar10 --teacher resnet34 --student resnet18
    python vanilla_kd.py --dataset cifar10 --teacher resnet34 --student resnet18 --transfer_set FOLDER

The first uses the training images, as data-free methods cannot: their upper yardstick. The second uses any
images below a folder, or another dataset's by its name: another domain's, which is the lower one, or what
a run has exported (`bsr_main.py --export_repository`).
"""

from datafree.cli.kd import main

if __name__ == "__main__":
    main()
