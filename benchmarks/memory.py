"""Memory of this process, from Linux's /proc.

Not from getrusage: its peak survives exec, so that a script started by a large process, a test
worker for one, would report that one's.
"""

from pathlib import Path


def resident_bytes() -> int:
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if field in line).split()[1]) * 1024
