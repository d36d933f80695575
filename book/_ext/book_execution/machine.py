"""Where and when outputs were made."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from .fingerprint import PACKAGES, Inputs, installed_versions

_DESCRIBE_GPU = """
import json, torch
if torch.cuda.is_available():
    gpu = torch.cuda.get_device_properties(0)
    print(json.dumps(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """How the outputs of a chapter came to be."""

    date: str  # UTC, ISO 8601
    seconds: float
    preset: str  # "cpu" or "gpu": what the chapter was told to use
    hardware: str
    versions: dict[str, str]
    commit: str  # "-dirty" added when files differed from it
    fingerprint: str  # of inputs
    inputs: Inputs

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict) -> "Record":
        return cls(**record | {"inputs": Inputs(**record["inputs"])})


def new_record(
    inputs: Inputs, *, seconds: float, preset: str, root: Path
) -> Record:
    """Describe an execution that has just ended on this machine."""
    return Record(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 2),
        preset=preset,
        hardware=(describe_gpu() if preset == "gpu" else "") or describe_cpu(),
        versions=describe_versions(),
        commit=_commit(root),
        fingerprint=inputs.fingerprint,
        inputs=inputs,
    )


def describe_cpu() -> str:
    """Return model, cores that may be used, and memory of this machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    elif platform.system() == "Darwin":
        model = _output("sysctl", "-n", "machdep.cpu.brand_string") or model
    described = f"{model}, {available_cores()} cores"
    if hasattr(os, "sysconf"):  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        described += f", {memory / 2**30:.0f} GiB"
    return described


def describe_gpu() -> str:
    """Return name and memory of the GPU that torch would use, or ""."""
    # In a process of its own: importing torch takes seconds and memory.
    described = _output(sys.executable, "-c", _DESCRIBE_GPU)
    return json.loads(described) if described else ""


def describe_versions() -> dict[str, str]:
    python = {"python": platform.python_version()}
    return python | installed_versions(PACKAGES)


def available_cores() -> int:
    """Count the cores that this process may use, not those that exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _commit(root: Path) -> str:
    described = _output(
        *("git", "-C", str(root), "describe", "--always", "--dirty"),
        *("--abbrev=12", "--exclude=*"),
    )
    return described or "unknown"


def _output(*command: str) -> str:
    """Return what a command prints, or "" if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
