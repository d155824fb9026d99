"""Divergences against definitions written out in double precision, and the chunked path against the plain one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.distill.chunked import chunked_loss
from bitdistiller.distill.losses import (
    cakld,
    cakld_tokens,
    cakld_tokens_and_grad,
    forward_kl,
    jsd,
    jsd_tokens,
    jsd_tokens_and_grad,
    masked_mean,
    reverse_kl,
    tsld,
)
from bitdistiller.distill.objective import Objective
from bitdistiller.errors import UserError


def slow_kl(p, q):
    """KL of two lists of probabilities, in nats."""
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True) if a > 0)


@st.composite
def logits(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(2, 6))
    size = draw(st.sampled_from([0.1, 1.0, 8.0]))
    return torch.randn(shape, generator=generator) * size, torch.randn(shape, generator=generator) * size


@given(logits(), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_cakld_is_its_definition(pair, gamma):
    student, teacher = pair
    expected = []
    for s, t in zip(student.double().flatten(0, 1), teacher.double().flatten(0, 1), strict=True):
        q, p = s.softmax(-1), t.softmax(-1)
        expected.append(gamma * slow_kl(q, p) + (1 - gamma) * slow_kl(p, q))
    assert cakld(student, teacher, gamma=gamma).double() == pytest.approx(
        torch.stack(expected).mean().item(), abs=1e-5, rel=1e-5
    )


@given(logits())
def test_divergences_are_not_negative_and_zero_for_equals(pair):
    student, teacher = pair
    for loss in (forward_kl, reverse_kl, cakld, jsd):
        assert loss(student, teacher) >= -1e-6
        assert loss(teacher, teacher).abs() < 1e-6


@given(logits())
def test_cakld_ends_are_the_two_kls_and_jsd_is_symmetric_and_bounded(pair):
    student, teacher = pair
    assert cakld(student, teacher, gamma=0.0) == forward_kl(student, teacher)
    assert cakld(student, teacher, gamma=1.0) == reverse_kl(student, teacher)
    assert torch.allclose(forward_kl(student, teacher), reverse_kl(teacher, student), atol=1e-5)
    assert torch.allclose(jsd(student, teacher), jsd(teacher, student), atol=1e-5)
    assert jsd(student, teacher) <= torch.log(torch.tensor(2.0)) + 1e-6


@given(logits(), st.floats(-50, 50))
def test_logits_may_shift(pair, shift):
    student, teacher = pair
    assert torch.allclose(cakld(student + shift, teacher), cakld(student, teacher), atol=1e-3)


@given(logits(), st.sampled_from([0.0, 0.4, 1.0]))
def test_closed_form_gradient_is_autograd_s(pair, gamma):
    student, teacher = pair
    student = student.double().requires_grad_()
    expected = torch.autograd.grad(_double_cakld(student, teacher.double(), gamma).sum(), student)[0]
    values, grad = cakld_tokens_and_grad(student.detach(), teacher, gamma)
    assert torch.allclose(values, cakld_tokens(student, teacher, gamma).float(), atol=1e-4)
    assert torch.allclose(grad.double(), expected, atol=1e-4)


def _double_cakld(student, teacher, gamma):
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    return gamma * (log_q.exp() * (log_q - log_p)).sum(-1) + (1 - gamma) * (log_p.exp() * (log_p - log_q)).sum(-1)


OBJECTIVES = [
    Objective("cakld", 0.0),
    Objective("cakld", 0.6),
    Objective("forward_kl"),
    Objective("reverse_kl"),
    Objective("jsd"),
    Objective("tsld"),
    Objective("ce"),
    Objective("cakld", 0.3, temperature=5.0),
    Objective("jsd", temperature=2.0, ce_weight=0.5),
    Objective("tsld", temperature=0.5),
    Objective("cakld", 1.0, temperature=20.0, ce_weight=1.0),
]


def slow_objective(objective, student, teacher, labels):
    """The mean over tokens by autograd's road: softened logits, the plain losses, cross-entropy beside them."""
    hard = torch.nn.functional.cross_entropy(student, labels)
    if objective.loss == "ce":
        return hard
    soft = objective.temperature
    pair = student / soft, teacher / soft
    divergence = {
        "cakld": lambda: cakld(*pair, gamma=objective.gamma),
        "forward_kl": lambda: forward_kl(*pair),
        "reverse_kl": lambda: reverse_kl(*pair),
        "jsd": lambda: jsd(*pair),
        "tsld": lambda: slow_tsld(*pair, teacher, labels),
    }[objective.loss]()
    if objective.loss == "tsld":
        assert not objective.ce_weight  # its weights would apply to the cross-entropy as well
    return soft**2 * divergence + objective.ce_weight * hard


def slow_tsld(student, softened, teacher, labels):
    weight = (torch.nn.functional.cross_entropy(teacher, labels, reduction="none") / 10).softmax(0)
    return (cakld_tokens(student, softened, 0.0) * weight).sum()


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(OBJECTIVES), st.integers(0, 99))
def test_chunked_loss_and_gradients_equal_the_plain_ones(tokens, chunk, objective, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(n, 4, generator=generator).requires_grad_() for n in (tokens, 11))
    teacher_hidden, teacher_head = (torch.randn(n, 3, generator=generator) for n in (tokens, 11))
    labels = torch.randint(11, (tokens,), generator=generator)
    plain = slow_objective(objective, hidden @ head.T, teacher_hidden @ teacher_head.T, labels) * tokens
    expected = torch.autograd.grad(plain, (hidden, head))
    total = chunked_loss(hidden, head, teacher_hidden, teacher_head, labels, objective, chunk)
    assert torch.allclose(total, plain, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(torch.autograd.grad(total / 3, (hidden, head)), expected, strict=True):
        assert torch.allclose(found * 3, wanted, atol=2e-4, rtol=1e-3)


@given(logits(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_jsd_s_closed_form_is_autograd_s(pair, beta):
    student, teacher = pair
    if beta in (0, 1):
        assert not jsd_tokens_and_grad(student, teacher, beta)[1].any()
        return
    expected = torch.autograd.grad(jsd_tokens(student.requires_grad_(), teacher, beta).sum(), student)[0]
    values, grad = jsd_tokens_and_grad(student.detach(), teacher, beta)
    assert torch.equal(values, jsd_tokens(student.detach(), teacher, beta))
    assert torch.allclose(grad, expected, atol=1e-4)


def test_masked_tokens_count_for_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    changed = student.masked_fill(~mask.unsqueeze(-1), 1e4)
    assert torch.equal(cakld(student, teacher, mask=mask), cakld(changed, teacher, mask=mask))
    assert masked_mean(torch.arange(6.0).view(2, 3), mask) == pytest.approx((0 + 2 + 5) / 3)


def test_jsd_of_logits_that_underflow_is_finite():
    student = torch.tensor([[0.0, 0.0, -150.0, 0.0]]).requires_grad_()
    loss = jsd(student, torch.tensor([[0.0, 0.0, -150.0, 3.0]]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_tsld_weights_tokens_by_the_teacher_s_loss():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    labels = torch.tensor([[0, 1, 2, 3]])
    expected = slow_tsld(student[0], teacher[0], teacher[0], labels[0])
    assert tsld(student, teacher, labels) == pytest.approx(expected.item(), rel=1e-5)
    mask = torch.tensor([[True, True, False, True]])
    kept = slow_tsld(student[mask], teacher[mask], teacher[mask], labels[mask])
    assert tsld(student, teacher, labels, mask) == pytest.approx(kept.item(), rel=1e-5)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("call, words", [
    (lambda s, t: cakld(s, t[..., :-1]), "same vocabulary"),
    (lambda s, t: cakld(s, t, gamma=1.5), "gamma must lie"),
    (lambda s, t: jsd(s, t, beta=-0.1), "beta must lie"),
    (lambda s, t: cakld(s, t, mask=torch.zeros(2, 3, dtype=torch.bool)), "excludes every token"),
    (lambda s, t: cakld(s, t, mask=torch.ones(3, dtype=torch.bool)), "must be equal"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
