"""Where a result came from: commit, versions, machine. Cheap: nothing heavy is imported to name its version."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

from benchmarks.paper import paths

PACKAGES = ("torch", "lightning", "numpy")


def provenance() -> dict[str, Any]:
    """Commit, versions and hardware of this process, and the time now."""
    return {"commit": commit(), "versions": versions(), "machine": machine(), "started": now()}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def commit() -> str:
    """Short hash of HEAD, "+changes" when tracked code differs from it, "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "papers", "common", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """CPU model, usable cores, threads a unit may use, accelerator when the process used one."""
    found = {"cpu": _cpu_model(), "cores": cores(), "threads": int(os.environ.get("OMP_NUM_THREADS") or cores())}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models and models[0] != "unknown" else platform.processor() or platform.machine()
