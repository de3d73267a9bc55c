"""What does a worker train, and how is it put aside? The real engine; tests bring a cheaper one.

A worker process is told the name of this module and imports it, and torch with it, when it is up.
"""

from moeviz.checkpoint import load, save
from moeviz.engine import Engine, TrainingDiverged, available_devices

__all__ = ["Engine", "TrainingDiverged", "available_devices", "load", "save"]
