"""Measurements, never assertions: each module prints ratios of designs that took turns in one run."""
