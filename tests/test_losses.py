"""Loss terms in closed form (more of them against the published code's numbers in test_golden.py)."""

import pytest
import torch
from helpers import kl, softmax

from datafree import losses


def test_class_balance_is_finite_where_a_class_has_no_probability_at_all():
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    value = losses.class_balance(logits)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()


def test_what_teaches_the_student():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    assert losses.divergence("l1", student, teacher).item() == pytest.approx(1.25)
    p, q = (softmax(logits.numpy() / 2) for logits in (teacher, student))
    expected = 4 * kl(p, q).mean()
    assert losses.divergence("kl", student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="kl or l1"):
        losses.divergence("l2", student, teacher)


def test_the_global_views_of_cmi_get_no_gradient():
    anchors, candidates = (torch.rand(4, 3, requires_grad=True) for _ in range(2))
    losses.contrastive(anchors, candidates, 2, 0.1).backward()
    assert anchors.grad is not None
    assert candidates.grad is None
