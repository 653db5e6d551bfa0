from __future__ import annotations

import pytest

from moon2_dataset.augment.model_failures import PATIENCE, ModelFailures


def run(failures: ModelFailures, *worked: bool) -> None:
    with failures.batch():
        for item, well in enumerate(worked):
            if well:
                failures.success()
            else:
                failures.failure(item, OSError(f"item\n{item} is broken"))


def test_single_failures_are_told_with_their_reason():
    failures = ModelFailures("vlm A")
    run(failures, True, False, True, False)
    assert failures.reasons == {1: "OSError: item 1 is broken", 3: "OSError: item 3 is broken"}
    run(failures, True)
    assert failures.reasons == {}


def test_a_model_that_has_never_worked_is_given_up_early():
    message = (
        f"vlm A: failed at {PATIENCE} items and succeeded at none; the first failed with OSError: item 0 is broken"
    )
    with pytest.raises(ValueError, match=message):
        run(ModelFailures("vlm A"), *[False] * 1000)
    with pytest.raises(ValueError, match="failed at 2 items"):  # also where there are not so many
        run(ModelFailures("vlm A"), False, False)


def test_a_model_that_has_worked_may_fail_at_a_few_but_not_at_a_whole_batch():
    failures = ModelFailures("vlm A")
    run(failures, True)
    run(failures, *[False] * (PATIENCE - 1))
    run(failures, *[False] * PATIENCE, True)
    assert len(failures.reasons) == PATIENCE
    with pytest.raises(ValueError, match=f"failed at {2 * PATIENCE} items"):
        run(failures, *[False] * (2 * PATIENCE))


def test_an_error_within_a_batch_is_not_covered_up():
    failures = ModelFailures("vlm A")
    with pytest.raises(KeyError), failures.batch():
        failures.failure(0, "odd")
        raise KeyError
