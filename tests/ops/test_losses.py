"""The distillation losses against their formulas, computed by hand."""

import math

import pytest
import torch
from torch.nn import functional

from hfcompress.ops.losses import (
    attention_mse,
    hidden_mse,
    labelled_cross_entropy,
    mixed_logits,
    relation_kl,
    soft_cross_entropy,
    states_mse,
    weighted_cross_entropy,
)


def test_soft_cross_entropy_is_the_divergence_of_the_softened_answers_times_the_squared_temperature() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # at T = 2 the teacher says 3/4 and 1/4
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(4 * by_hand, rel=1e-5)
    assert soft_cross_entropy(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_mixed_logits_are_the_mean_of_two_teachers_soft_labels() -> None:
    teacher, other = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[0.25, 0.75]])
    mixed = mixed_logits(teacher, other, 0.5, 2.0)  # at T = 2 the first says 3/4 and 1/4
    assert torch.allclose(functional.softmax(mixed / 2.0, dim=-1), torch.tensor([[0.5, 0.5]]), atol=1e-6)
    alone = functional.softmax(mixed_logits(teacher, other, 0.0, 2.0) / 2.0, dim=-1)
    assert torch.allclose(alone, torch.tensor([[0.75, 0.25]]), atol=1e-6)
    assert mixed_logits(teacher, torch.tensor([[0.0, 1.0]]), 1.0, 2.0).isfinite().all()


def test_soft_cross_entropy_at_a_high_temperature_has_hintons_gradient() -> None:
    """Equation 4: for logits of mean zero the gradient is (z - v) / N, here averaged over the batch."""
    student = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 2.0, -2.0], [1.0, 0.0, -1.0]])
    soft_cross_entropy(student, teacher, 1000.0).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3 / 2, atol=1e-3, rtol=1e-2)


def test_examples_without_a_label_do_not_count() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    labels = torch.tensor([0, 1, -100])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert labelled_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_labels_gives_zero_and_no_nan_gradient() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = labelled_cross_entropy(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0.0


def test_label_smoothing_is_torchs() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(
        labelled_cross_entropy(logits, labels, 0.1), functional.cross_entropy(logits, labels, label_smoothing=0.1)
    )


def test_an_example_counts_as_much_as_its_weight_says() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    by_hand = (0.5 * math.log(1 + math.exp(-2)) + 1.5 * math.log(1 + math.exp(1))) / 2
    assert weighted_cross_entropy(logits, labels, torch.tensor([0.5, 1.5])).item() == pytest.approx(by_hand, rel=1e-5)


def test_hidden_mse_is_the_mean_over_real_tokens() -> None:
    student = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [99.0, 99.0]]])
    teacher = torch.tensor([[[0.0, 1.0], [2.0, 2.0], [-7.0, 0.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert hidden_mse(student, teacher, mask).item() == pytest.approx(((1 + 4) / 2 + (4 + 4) / 2) / 2)


def test_states_mse_is_the_mean_over_layers_of_what_is_lost_of_each() -> None:
    """|(1, 0)|^2 of |(3, 4)|^2, and all of it; a layer ten times as large counts no more."""
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0], [20.0]])
    found = states_mse([first + torch.tensor([1.0, 0.0]), 0 * second], [first, second])
    torch.testing.assert_close(found, torch.tensor((1 / 25 + 1) / 2))


def test_attention_mse_is_the_mean_over_pairs_of_real_tokens() -> None:
    student, teacher = torch.zeros(1, 3, 3), torch.ones(1, 3, 3)
    student[0, 0, 0] = 0.5
    student[0, 2, :] = student[0, :, 2] = 9.0
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert attention_mse(student, teacher, mask).item() == pytest.approx((0.25 + 1 + 1 + 1) / 4)


def relation(vectors: list[float]) -> list[list[float]]:
    """Softmax of the products of scalars: the relation of one head of size 1, by hand."""
    rows = [[math.exp(a * b) for b in vectors] for a in vectors]
    return [[value / sum(row) for value in row] for row in rows]


def test_relation_kl_is_the_divergence_of_softmaxed_products_over_real_tokens() -> None:
    """MiniLMv2, section 3.1: one head of size 1, three tokens of which the last is padding."""
    student, teacher = [0.5, -1.0], [1.0, 2.0]
    by_hand = 0.0
    for s, t in zip(relation(student), relation(teacher), strict=True):
        by_hand += sum(q * math.log(q / p) for p, q in zip(s, t, strict=True)) / 2
    found = relation_kl(
        torch.tensor([[[v] for v in [*student, 50.0]]]), torch.tensor([[[v] for v in [*teacher, -3.0]]]),
        torch.tensor([[1.0, 1.0, 0.0]]), heads=1,
    )  # fmt: skip
    assert found.item() == pytest.approx(by_hand, rel=1e-5)


def test_relations_are_scaled_by_the_root_of_the_relation_heads_size_and_averaged_over_heads() -> None:
    """Two heads of size 4 that hold the same numbers in each place are heads of size 1 with logits times 4 / 2."""
    scalars = torch.tensor([0.5, -1.0])
    wide = scalars[None, :, None].expand(1, 2, 8).contiguous()
    narrow = (scalars * math.sqrt(2))[None, :, None]
    other = torch.randn(1, 2, 1)
    ones = torch.ones(1, 2)
    assert relation_kl(wide, wide, ones, heads=2).item() == pytest.approx(0.0, abs=1e-6)
    of_wide = relation_kl(other.expand(1, 2, 8).contiguous(), wide, ones, heads=2)
    of_narrow = relation_kl(other * math.sqrt(2), narrow, ones, heads=1)
    torch.testing.assert_close(of_wide, of_narrow)


def test_student_and_teacher_may_differ_in_size_but_not_in_relation_heads() -> None:
    student, teacher = torch.randn(2, 5, 32, requires_grad=True), torch.randn(2, 5, 48)
    loss = relation_kl(student, teacher, torch.ones(2, 5), heads=4)
    loss.backward()
    assert loss.item() > 0
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_relations_are_computed_in_fp32_under_autocast() -> None:
    student, teacher, mask = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.ones(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = relation_kl(student, teacher, mask, 4)
    assert inside.item() == relation_kl(student, teacher, mask, 4).item()


@pytest.mark.parametrize("loss", ["hidden", "attention", "relation"])
def test_two_halves_of_a_batch_have_the_loss_of_the_whole(loss: str) -> None:
    """Also where one half's texts are short: else two ranks would not train as one does."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 6)
    mask[2:, 2:] = 0
    width = 6 if loss == "attention" else 8
    student, teacher = (torch.rand(4, 6, width, generator=generator) for _ in range(2))
    functions = {"hidden": hidden_mse, "attention": attention_mse, "relation": lambda s, t, m: relation_kl(s, t, m, 2)}
    halves = [functions[loss](student[half], teacher[half], mask[half]) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, functions[loss](student, teacher, mask))


def test_what_stands_at_padding_never_matters() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    student, teacher = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    noise = torch.randn(2, 4, 8) * 100 * (1 - mask)[:, :, None]
    square = torch.randn(2, 4, 4) * 100 * (1 - mask[:, :, None] * mask[:, None, :])
    torch.testing.assert_close(hidden_mse(student + noise, teacher, mask), hidden_mse(student, teacher, mask))
    torch.testing.assert_close(relation_kl(student + noise, teacher, mask, 2), relation_kl(student, teacher, mask, 2))
    a, b = torch.rand(2, 4, 4), torch.rand(2, 4, 4)
    torch.testing.assert_close(attention_mse(a + square, b, mask), attention_mse(a, b, mask))
