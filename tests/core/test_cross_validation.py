"""Cross-validation of a linear head: who shares a fold, what is left out, and that no image judges itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bpt_core import cross_validation
from bpt_core.cross_validation import ALONE, FEW_IMAGES, FEW_WITHOUT, FOLDS, cross_validate, fit_head, folds

SINGLE, MULTI = "single-label", "multi-label"


def task_of(images: int, classes: int, apart: float = 3.0) -> tuple[Tensor, Tensor, list[bytes]]:
    """Features [N, 8], targets [N, C], pictures of classes that lie so far apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = apart * functional.one_hot(torch.arange(classes), 8)
    features = centres[labels] + torch.randn(images, 8, generator=generator)
    return features, functional.one_hot(labels, classes).float(), [bytes([at]) for at in range(images)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_equal_pictures_share_a_fold_and_every_class_is_spread(images: list[tuple[int, int]]) -> None:
    label_of = {picture: label for label, picture in images}  # a picture has one label here
    pictures = [picture for _, picture in images]
    targets = functional.one_hot(torch.tensor([label_of[picture] for picture in pictures]), 4).float()
    found = folds(targets, [bytes([picture]) for picture in pictures]).tolist()
    fold_of = dict(zip(pictures, found, strict=True))
    assert [fold_of[picture] for picture in pictures] == found
    for label in set(label_of.values()):
        counts = [0] * FOLDS
        for picture, fold in fold_of.items():
            counts[fold] += label_of[picture] == label
        assert max(counts) - min(counts) <= 1


def test_folds_do_not_depend_on_the_order_of_the_images() -> None:
    _, targets, pictures = task_of(40, 3)
    targets, pictures = torch.cat([targets, targets[:6].roll(1, dims=1)]), pictures + pictures[:6]  # under two labels
    order = torch.arange(46).flip(0)
    assert torch.equal(folds(targets, pictures)[order], folds(targets[order], [pictures[at] for at in order]))


def test_classes_that_lie_apart_are_told_apart() -> None:
    features, targets, pictures = task_of(60, 3)
    for task in (SINGLE, MULTI):
        found = cross_validate(features, targets, pictures, task)
        assert found.left_out == {}
        assert (found.probabilities.argmax(dim=1) == targets.argmax(dim=1)).float().mean() > 0.9
    assert torch.allclose(
        cross_validate(features, targets, pictures, SINGLE).probabilities.sum(dim=1), torch.ones(60).double()
    )


def test_no_image_is_judged_by_what_it_was_learned_from() -> None:
    features, targets, pictures = task_of(60, 2, apart=0.0)
    features = torch.cat([features, torch.eye(60)], dim=1)  # by which a head could know every image again
    learned = fit_head(features, targets, SINGLE)(features)
    assert (learned.argmax(dim=1) == targets.argmax(dim=1)).all()
    found = cross_validate(features, targets, pictures, SINGLE)
    assert (found.probabilities.argmax(dim=1) == targets.argmax(dim=1)).float().mean() < 0.75


def test_a_duplicate_under_another_label_does_not_vouch_for_itself() -> None:
    features, targets, pictures = task_of(30, 3)
    twice = torch.cat([features, features[:5]])
    wrong = targets[:5].roll(1, dims=1)
    found = cross_validate(twice, torch.cat([targets, wrong]), pictures + pictures[:5], SINGLE)
    assert torch.allclose(found.probabilities[:5], found.probabilities[30:], atol=1e-6)


def test_the_penalised_fit_is_the_optimum() -> None:
    features, targets, _ = task_of(50, 3, apart=1.0)
    for task in (SINGLE, MULTI):
        found = fit_head(features, targets, task)(features)
        mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
        known = functional.pad((features - mean) / deviation, (0, 1), value=1.0).double()
        weights = torch.zeros(9, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
        penalty = 8 / (cross_validation.PRIOR_VARIANCE * 50)

        def closure() -> Tensor:
            optimizer.zero_grad()  # noqa: B023
            logits = known @ weights  # noqa: B023
            if task == SINGLE:  # noqa: B023
                loss = functional.cross_entropy(logits, targets.double())
            else:
                loss = functional.binary_cross_entropy_with_logits(logits, targets.double()) * 3
            total = loss + penalty * weights[:-1].square().sum() / 2  # noqa: B023
            torch.autograd.backward(total)
            return total

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        assert torch.allclose(found.double(), (known @ weights).detach(), atol=0.05)


def test_a_class_with_too_few_different_images_is_left_out_with_its_images() -> None:
    features, targets, pictures = task_of(30, 3)
    keep = [at for at in range(30) if at % 3 != 2 or at < 12]  # four of class 2
    again = [*keep, 2, 2]  # two more, but they are the same picture
    found = cross_validate(features[again], targets[again], [pictures[at] for at in again], SINGLE)
    assert found.left_out == {2: FEW_IMAGES}
    judged = targets[again][:, 2] == 0
    assert torch.equal(found.probabilities[~judged], targets[again][~judged].double())
    assert (found.probabilities[judged, 2] == 0).all()
    assert ((found.probabilities[judged] > 0) & (found.probabilities[judged] < 1)).sum() == 2 * judged.sum()


def test_where_one_class_is_left_nothing_is_judged() -> None:
    features, targets, pictures = task_of(12, 3)
    keep = [0, 3, 6, 9, 1, 2, 5]
    found = cross_validate(features[keep], targets[keep], [pictures[at] for at in keep], SINGLE)
    assert found.left_out == {0: FEW_IMAGES, 1: FEW_IMAGES, 2: FEW_IMAGES}
    assert torch.equal(found.probabilities, targets[keep].double())
    more = [*keep, 4]  # with five, class 0 alone would be left
    five = torch.cat([targets[more], targets[:1]]), torch.cat([features[more], features[:1]])
    found = cross_validate(five[1], five[0], [*(pictures[at] for at in more), b"more"], SINGLE)
    assert found.left_out == {0: ALONE, 1: FEW_IMAGES, 2: FEW_IMAGES}
    assert torch.equal(found.probabilities, five[0].double())


def test_with_several_labels_only_the_label_is_left_out() -> None:
    features, targets, pictures = task_of(30, 3)
    targets = torch.cat([targets, torch.ones(30, 1), torch.zeros(30, 1)], dim=1)
    targets[0, 4] = 1
    found = cross_validate(features, targets, pictures, MULTI)
    assert found.left_out == {3: FEW_WITHOUT, 4: FEW_IMAGES}
    assert torch.equal(found.probabilities[:, 3:], targets[:, 3:].double())
    assert ((found.probabilities[:, :3] > 0) & (found.probabilities[:, :3] < 1)).all()


def test_a_feature_that_never_varies_is_no_trouble() -> None:
    features, targets, pictures = task_of(40, 2)
    features[:, 7] = 5.0
    assert cross_validate(features, targets, pictures, SINGLE).probabilities.isfinite().all()
