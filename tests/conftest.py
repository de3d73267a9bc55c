"""The same random examples on every machine and every day, without a clock: a red test stays red until it is fixed."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, Phase, settings

pytest_plugins = ("tests.browsing",)  # its fixtures
settings.register_profile(
    "moeviz", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
# `make mutants`: the same examples, but a mutant is dead as soon as one example fails; nobody reads the smallest one.
settings.register_profile("mutants", settings.get_profile("moeviz"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("moeviz")


def pytest_runtest_setup(item):
    """What this machine cannot promise is not expected of it, and said."""
    if item.get_closest_marker("exact"):
        from moeviz.stacking import stacks_exactly

        if not stacks_exactly("cpu"):
            pytest.skip("this machine rounds a run otherwise when others are beside it: equal to rounding only")


@pytest.fixture(scope="module", autouse=True)
def _end_the_workers():
    """Pages that are run as scripts share a host, whose processes would outlive their module."""
    yield
    hosting = sys.modules.get("moeviz.ui.hosting")
    if hosting is not None and hosting.host.cache_info().currsize:
        hosting.host().shutdown()
        hosting.host.cache_clear()
