"""The numbers equal scikit-learn's, absent classes included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from trainer.metrics import binary_auc, evaluate, rank, softmax
from trainer.records import Metrics

NAMES = ("1", "2", "3", "4")
CLASSES = list(range(len(NAMES)))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn warns of absent classes


def sample(seed: int, present: set[int], *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return labels from *present* alone and random probabilities of all classes, coarse ones where *ties* are wanted."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(sorted(present), size=int(generator.integers(1, 60)))
    logits = generator.normal(size=(len(labels), len(NAMES)))
    return labels.astype(np.int64), softmax(np.round(logits) if ties else logits)


samples = st.builds(sample, st.integers(0, 2**32), st.sets(st.sampled_from(CLASSES), min_size=1), ties=st.booleans())


@settings(max_examples=200, deadline=None)
@given(samples)
def test_numbers_from_the_matrix_equal_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    """Accuracy, balanced accuracy, kappa and the numbers of each class, whatever classes are absent."""
    labels, probabilities = drawn
    ours, predicted = evaluate(labels, probabilities, NAMES), probabilities.argmax(axis=1)
    assert ours.acc == pytest.approx(reference.accuracy_score(labels, predicted))
    assert ours.balanced_acc == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    if len(set(labels)) > 1:
        adjusted = reference.balanced_accuracy_score(labels, predicted, adjusted=True)
        assert ours.balanced_acc_adj == pytest.approx(adjusted)
    else:
        assert ours.balanced_acc_adj is None
    if len({*labels, *predicted}) > 1:
        kappa = reference.cohen_kappa_score(labels, predicted, weights="quadratic", labels=CLASSES)
        assert ours.kappa_quadratic == pytest.approx(kappa)
    else:
        assert ours.kappa_quadratic is None
    assert np.array_equal(ours.confusion_matrix, reference.confusion_matrix(labels, predicted, labels=CLASSES))
    columns = reference.precision_recall_fscore_support(labels, predicted, labels=CLASSES, zero_division=np.nan)
    for name, expected in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        found = [getattr(ours.per_class[each], name) for each in NAMES]
        numbers = [np.nan if value is None else value for value in found]
        assert numbers == pytest.approx(list(expected), nan_ok=True)


@settings(max_examples=150, deadline=None)
@given(samples)
def test_areas_equal_scikit_learns_over_the_classes_that_have_both_sides(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    """One-vs-rest and one-vs-one areas are means of scikit-learn's binary ones, ties included."""
    labels, probabilities = drawn
    ours, present = evaluate(labels, probabilities, NAMES), sorted(set(labels.tolist()))
    if len(present) == 1:
        assert (ours.auc_ovr, ours.auc_ovo, ours.auc_classes) == (None, None, 0)
        return
    rest = [reference.roc_auc_score(labels == c, probabilities[:, c]) for c in present]
    assert ours.auc_ovr == pytest.approx(np.mean(rest))
    assert ours.auc_classes == len(present)
    pairs = []
    for i, a in enumerate(present):
        for b in present[i + 1 :]:
            own = np.isin(labels, (a, b))
            pairs.append(np.mean([reference.roc_auc_score(labels[own] == c, probabilities[own, c]) for c in (a, b)]))
    assert ours.auc_ovo == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("seed", range(5))
def test_multiclass_areas_equal_scikit_learns_own_means(seed: int) -> None:
    """With all classes present the areas are roc_auc_score's ovr and ovo."""
    labels, probabilities = np.arange(80) % 4, softmax(np.random.default_rng(seed).normal(size=(80, 4)))
    ours = evaluate(labels, probabilities, NAMES)
    assert ours.auc_ovr == pytest.approx(reference.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert ours.auc_ovo == pytest.approx(reference.roc_auc_score(labels, probabilities, multi_class="ovo"))


def test_losses_are_plain_cross_entropy_over_images() -> None:
    """The loss is scikit-learn's log loss, and that of a class the same over its images."""
    labels, probabilities = np.arange(50) % 3, softmax(np.random.default_rng(0).normal(size=(50, 4)))
    ours = evaluate(labels, probabilities, NAMES)
    assert ours.loss == pytest.approx(reference.log_loss(labels, probabilities, labels=CLASSES))
    own = labels == 1
    expected = reference.log_loss(labels[own], probabilities[own], labels=CLASSES)
    assert ours.per_class["2"].loss == pytest.approx(expected)
    assert ours.per_class["4"].loss is None


def test_a_perfect_model_scores_1_without_one_class() -> None:
    """A class that is absent does not cost a perfect model anything."""
    labels = np.array([0, 0, 1, 3])
    ours = evaluate(labels, np.eye(4)[labels], NAMES)
    assert (ours.balanced_acc_adj, ours.kappa_quadratic, ours.auc_ovr) == (1.0, 1.0, 1.0)


def test_nothing_exists_without_images() -> None:
    """Without images no number exists, and none is 0."""
    ours = evaluate(np.zeros(0, dtype=np.int64), np.zeros((0, 4)), NAMES)
    assert (ours.loss, ours.acc, ours.balanced_acc, ours.balanced_acc_adj) == (None, None, None, None)


def test_an_impossible_class_keeps_the_loss_finite() -> None:
    """A probability of exactly 0 for the true class is a large loss, not an infinite one."""
    ours = evaluate(np.array([0]), np.array([[0.0, 1.0, 0.0, 0.0]]), NAMES)
    assert ours.loss is not None
    assert 700 < ours.loss < 710


def test_rank_compares_left_to_right_and_puts_the_undefined_last() -> None:
    """Adjusted balanced accuracy decides first, then kappa, then the area; None is minus infinity."""
    labels = np.array([0, 1, 2, 3])
    base: Metrics = evaluate(labels, np.eye(4)[labels], NAMES)
    lower = base.model_copy(update={"balanced_acc_adj": 0.5})
    undefined = base.model_copy(update={"kappa_quadratic": None})
    assert rank(base) > rank(undefined) > rank(lower)
    assert rank(base.model_copy(update={"auc_ovr": 0.9})) < rank(base)


def test_binary_area_counts_ties_half() -> None:
    """Equal scores of a positive and a negative are half right."""
    assert binary_auc(np.array([True, False]), np.array([0.3, 0.3])) == 0.5
