"""The same random examples on every machine and every day, without a clock: a red test stays red until it is fixed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "moeviz", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("moeviz")
