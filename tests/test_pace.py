"""A checkpoint is due when losing the work since the last one would cost more than saving it."""

from __future__ import annotations

import pytest

from ien.pace import Pace


def test_the_interval_is_youngs_optimum() -> None:
    pace = Pace(None, machines=4)
    pace.saved(1.0)
    pace.saved(8.0)
    pace.saved(2.0)
    assert pace.interval == pytest.approx((2 * 8.0 * 86400 / 4) ** 0.5)


@pytest.mark.parametrize(("save", "interval"), [(0.0, 60.0), (0.001, 60.0), (30.0, 1800.0), (100.0, 5000.0)])
def test_the_interval_stays_within_bounds(save: float, interval: float) -> None:
    pace = Pace(None)
    pace.saved(save)
    assert pace.interval == pytest.approx(interval)


def test_a_given_interval_is_kept_and_the_last_save_has_time() -> None:
    pace = Pace(2.5)
    pace.saved(20.0)
    assert pace.interval == 150.0
    assert pace.margin == 90.0
