"""Made by scripts/derive.py from datafree/settings.py: keyword arguments of `distill`."""

from typing import TypedDict

class Keywords(TypedDict, total=False):
    feature_layer: str | None
    method: str | None
    dlw: bool | None
    blg: bool | None
    iho: bool | None
    store_samples: bool | None
    max_samples: int | None
    dlw_mode: str | None
    oh_min: float | None
    oh_max: float | None
    oh_step: float | None
    oh_memory_size: int | None
    synthesis_batch_size: int | None
    g_steps: int | None
    lr_g: float | None
    lr_z: float | None
    adv: float | None
    bn: float | None
    oh: float | None
    bn_mmt: float | None
    is_maml: int | None
    reset_l0: int | None
    reset_bn: int | None
    epochs: int | None
    warmup: int | None
    kd_steps: int | None
    ep_steps: int | None
    batch_size: int | None
    lr: float | None
    T: float | None
    compile: bool | None
    momentum: float | None
    weight_decay: float | None
    amp: str | None
    eval_every: int | None
    reuse_teacher: int | None
    seed: int | None
    act: float | None
    balance: float | None
    cr: float | None
    cr_T: float | None
    tv: float | None
    l2: float | None
