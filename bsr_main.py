"""Distil a student from a frozen teacher without its training data (BSR).

    python bsr_main.py --dataset cifar10 --teacher resnet34 --student resnet18

The flags are in datafree/settings.py; the method is in datafree/, an epoch of it in datafree/distiller.py.
"""

from __future__ import annotations

from datafree.flags import run
from datafree.settings import build_parser, resolve


def main() -> None:
    args = build_parser().parse_args()
    warnings = resolve(args)
    # Only now, so that --help and mistakes in flags answer at once.
    from datafree.session import Session

    session = Session(args)
    for warning in warnings:
        session.say(f"warning: {warning}", "yellow")
    if args.test_teacher:
        session.test_teacher()
    if args.evaluate_only:
        session.evaluate_student()
    elif args.epochs:
        session.distill()
    elif not args.test_teacher:
        session.say(f"nothing to do with --epochs 0 ({args.teacher} can be scored with --test_teacher)")


if __name__ == "__main__":
    run(main, "bsr_main.py")
