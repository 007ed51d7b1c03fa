"""Loss terms. Logits are (N, C); every result is a scalar unless stated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.torch_utils.precision import at_least_single


def kldiv(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) at a temperature, averaged over the batch, times its square
    (Hinton et al., 2015, equation 4)."""
    q = F.log_softmax(student_logits / temperature, dim=1)
    p = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2


def jsdiv(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence as in DeepInversion (Yin et al., CVPR 2020, equation 6):
    the two softmaxes and their mean are clamped to [0.01, 0.99] before the logarithm."""
    p = F.softmax(student_logits / temperature, dim=1)
    q = F.softmax(teacher_logits / temperature, dim=1)
    m = 0.5 * (p + q)
    p, q, m = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99), m.clamp(0.01, 0.99)
    return 0.5 * F.kl_div(p.log(), m, reduction="batchmean") + 0.5 * F.kl_div(
        q.log(), m, reduction="batchmean"
    )


def adversarial(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Decision adversarial loss (CMI, Fang et al., IJCAI 2021): minus KL(teacher || student), counted
    only where the two agree on the class, averaged over the whole batch."""
    q = F.log_softmax(student_logits, dim=1)
    p = F.log_softmax(teacher_logits, dim=1)
    divergence = F.kl_div(q, p, reduction="none", log_target=True).sum(1)
    agree = student_logits.argmax(1) == teacher_logits.argmax(1)
    return -(divergence * agree).mean()


def class_balance(logits: Tensor) -> Tensor:
    """`sum_k p_k log p_k` of the batch's mean softmax (DAFL, Chen et al., ICCV 2019, equation 6):
    smallest, -log C, when the predictions are uniform over the classes."""
    p = F.softmax(logits, dim=1).mean(0)
    return (p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum()


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of (N, C, H, W) images to their horizontal, vertical and two diagonal
    neighbours, the four summed (DeepInversion's image prior)."""
    horizontal = (images[..., :, :-1] - images[..., :, 1:]).abs().mean()
    vertical = (images[..., :-1, :] - images[..., 1:, :]).abs().mean()
    falling = (images[..., :-1, :-1] - images[..., 1:, 1:]).abs().mean()
    rising = (images[..., 1:, :-1] - images[..., :-1, 1:]).abs().mean()
    return horizontal + vertical + falling + rising


def l2_norm(images: Tensor) -> Tensor:
    """Euclidean norm of the whole batch (DeepInversion's image prior)."""
    return torch.linalg.vector_norm(images)


def activation(features: Tensor) -> Tensor:
    """Minus the mean absolute value of penultimate features (N, D): real images excite more of them than
    noise does (DAFL's activation loss)."""
    return -at_least_single(features).abs().mean()


def contrastive(anchors: Tensor, candidates: Tensor, new: int, temperature: float) -> Tensor:
    """CMI's contrastive loss, as its published code computes it (Fang et al., IJCAI 2021, equation 6): cross
    entropy of picking each anchor's own candidate among all, by inner product over the temperature. It is
    the mean over the new anchors plus the mean over the cached ones, which is absent where there are none.

    Args:
        anchors: (N, D), of unit length: local views, the new ones first.
        candidates: (N, D), of unit length: global views; that of anchor i is number i. They get no gradient.
        new: how many of the N anchors are new.
        temperature: above 0.
    """
    logits = anchors @ candidates.detach().T / temperature
    own = torch.arange(len(anchors), device=anchors.device)
    terms = F.cross_entropy(logits, own, reduction="none")
    loss = terms[:new].mean()
    return loss + terms[new:].mean() if len(anchors) > new else loss


def divergence(kind: str, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The divergence of a student from its teacher: `kl` (see `kldiv`), or `l1`, the mean absolute
    difference of the logits over the temperature (DFAD, Fang et al., 2019).

    Raises:
        ValueError: any other kind.
    """
    if kind == "kl":
        return kldiv(student_logits, teacher_logits, temperature)
    if kind == "l1":
        return F.l1_loss(student_logits, teacher_logits) / temperature
    raise ValueError(f"kind must be kl or l1, not {kind}")
