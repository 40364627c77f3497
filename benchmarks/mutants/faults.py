"""Every fault that is planted, of all parts of the product."""

from __future__ import annotations

from mutants import adapter_faults, data_faults, file_faults, kernel_faults, run_faults
from mutants.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *adapter_faults.FAULTS,
    *kernel_faults.FAULTS,
    *file_faults.FAULTS,
    *data_faults.FAULTS,
    *run_faults.FAULTS,
)
