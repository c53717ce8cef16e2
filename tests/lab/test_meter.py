"""The meter counts what is spent and lets nobody overspend."""

from __future__ import annotations

import pytest

from prunebench.bench.errors import BudgetExceeded
from prunebench.bench.lab.meter import Meter


def test_the_meter_by_itself():
    meter = Meter(10)
    meter.charge("a", 7, 1.5)
    with pytest.raises(BudgetExceeded, match="costs 4 sample passes, but only 3 of 10 remain"):
        meter.charge("b", 4)
    meter.check("c", 3)
    assert meter.spent == 7 and meter.stages[0].seconds == 1.5
