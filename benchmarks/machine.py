"""The machine that a benchmark runs on."""

import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """The name of the processor, if the system tells it."""
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        name = re.search(r"model name\s*:\s*(.+)", cpu_info.read_text(encoding="utf-8"))
        if name:
            return name[1]
    return platform.processor() or platform.machine()
