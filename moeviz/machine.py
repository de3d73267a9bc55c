"""What computes here? All that a run's numbers may depend on beside its settings."""

from __future__ import annotations

import platform
import re
from typing import Any

import numpy as np
import torch

import moeviz


def circumstances(device: str) -> dict[str, Any]:
    """What a receipt tells of a run on this device beside the run itself."""
    return {"versions": versions(), "device": device, "machine": kind(device)}


def versions() -> dict[str, str]:
    """Of everything that computes."""
    return {
        "moeviz": moeviz.__version__,
        "torch": str(torch.__version__),  # not its own kind of text, which would bring torch to whoever reads it
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def kind(device: str) -> dict[str, str]:
    """The kind of machine: on two of one kind, the same versions give the same numbers to the bit.

    architecture: of the processor. capability: the widest instructions that torch uses on it. algebra: the library of
    its matrix products. accelerator: the name of the GPU, if `device` is one.
    """
    algebra = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    found = {
        "architecture": platform.machine(),
        "system": platform.system(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "algebra": algebra[1] if algebra else "unknown",
    }
    if device == "cuda":
        found["accelerator"] = torch.cuda.get_device_name()
    return found
