"""One process of a stage run: its device, data and parents, and the loop that it calls.

The loops report through a plain callable and know neither Ray nor the store.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage
from pretune.store.store import Store
from pretune.trainables.files import WEIGHTS
from pretune.worker.failures import NoGPUError
from pretune.worker.stage_memory import claim_share
from pretune.worker.task import StageTask


def run_worker(
    task: StageTask,
    attempt: Path,
    report: Any,
    device: Any,
    resume: Path | None,
    world: Any = None,
    preempted: Callable[[], bool] = lambda: False,
    resident: bool = True,
) -> dict[str, float]:
    """Run the stage in this process, as one of the workers of `world` (default: alone); its metrics.

    Args:
        device: a torch.device.
        resume: the state to go on from.
        preempted: see `execute`.
        resident: whether images may lie on the GPU.
    """
    import torch

    from pretune.trainables.checkpoints import StateWriter
    from pretune.trainables.data.checks.requirements import check_requirements, facts_of_images
    from pretune.trainables.data.sources import open_set
    from pretune.trainables.data.splits import draw_split, marks_for
    from pretune.trainables.distributed import ALONE
    from pretune.trainables.finetune import finetune
    from pretune.trainables.loop import RunContext, set_tf32
    from pretune.trainables.memory import Residency
    from pretune.trainables.pretrain import pretrain
    from pretune.trainables.probes.accuracy import probe_accuracy
    from pretune.trainables.probes.cka import compare_encoders
    from pretune.trainables.probes.maps import write_maps

    if missing := not_shared(task):  # one of several workers, on another node than who began the stage
        raise FileNotFoundError(missing)
    stage, settings = task.stage, task.stage.settings
    torch.set_num_threads(stage.resources.cpus)
    claim_share(task.gpus)
    torch.backends.cudnn.deterministic = True
    set_tf32(getattr(settings, "precision", "float32") == "tf32")
    cache = Path(task.folders.cache)
    root = Path(task.folders.data) if task.folders.data else None
    asked_for = stage.data
    if asked_for.source == "auto":  # else each node would choose by its own memory
        asked_for = asked_for.model_copy(update={"source": task.source})
    opened = open_set(asked_for, stage.digest, root, cache, processes=stage.resources.cpus)
    with contextlib.closing(opened) as data, StateWriter(beside=True) as writer:
        workers = 1 if world is None else world.size
        check_requirements(stage.name.replace(":", "."), settings, stage.data, facts_of_images(data), workers)
        asked, marks = stage.data.split, marks_for(stage.data.split, data)
        seed = stage.streams.get("split", 0)
        split = draw_split(len(data.images), asked, seed, data.official_test, data.labels, marks)
        store = task.folders.open_store()
        parent, other = weights_of(stage.parent, store), weights_of(stage.other, store)
        context = RunContext(
            out=attempt,
            device=device,
            parent=parent,
            resume=resume,
            keep_state=stage.keep_state and bool(stage.series),
            checkpoint_seconds=task.checkpoint_seconds,
            world=world or ALONE,
            batch_norm=stage.resources.batch_norm,
            activation_checkpointing=stage.resources.activation_checkpointing,
            report=report,
            until=stage.until,
            residency=Residency(task.gpus, resident),
            writer=writer,
            preempted=preempted,
        )
        if isinstance(settings, schema.Pretrain):
            return pretrain(settings, stage.model, data, split, stage.streams, context)
        if isinstance(settings, schema.Finetune):
            strata = (marks.strata if asked.stratify == "pixels" else data.labels) if asked.stratify else None
            return finetune(
                settings, stage.model, data, split, stage.streams, context, on_test=stage.on_test, strata=strata
            )
        if isinstance(settings, schema.CKA):
            assert stage.other is not None
            assert parent is not None
            assert other is not None
            return compare_encoders(settings, (stage.model, stage.other.model), (parent, other), data, split, device)
        if isinstance(settings, schema.CAM | schema.FeatureMaps):
            return write_maps(settings, stage.model, data, split, context)
        return probe_accuracy(settings, stage.model, data, split, context)


def state_to_resume(task: StageTask) -> Path | None:
    """Return the state of an earlier attempt, or the end of a shorter training of the same."""
    store = task.folders.open_store()
    return store.resumable(task.fingerprint) or store.shorter(task.stage.series, task.stage.reach)


def weights_of(parent: Stage | None, store: Store) -> Path | None:
    """The weights that a stage starts from. Raises FileNotFoundError where the store lost them."""
    if parent is None:
        return None
    entry = store.find(parent.fingerprint)
    if entry is None:
        raise FileNotFoundError(
            f"the pretraining that it starts from ({parent.fingerprint}) is no longer in the store; run the study again"
        )
    return store.file(entry, WEIGHTS)


def device_for(gpus: float) -> Any:
    """The GPU that Ray gave this process, or the CPU. Raises RuntimeError where torch does not find that GPU."""
    import torch

    if gpus > 0 and not torch.cuda.is_available():
        raise NoGPUError(
            f"Ray assigned a GPU, but torch.cuda.is_available() is False on {platform.node()}: its driver does not "
            "work, or this torch is built without CUDA; "
            "`gpus: 0` under `resources` trains on the CPU"
        )
    return torch.device("cuda" if gpus > 0 else "cpu")


def hardware(task: StageTask) -> dict[str, Any]:
    """Hardware and versions, for the record."""
    import torch

    on_gpu = task.gpus > 0 and torch.cuda.is_available()
    cuda = torch.cuda.get_device_name() if on_gpu else None
    memory = torch.cuda.max_memory_allocated() if on_gpu else None  # bytes, since the stage began
    return {
        "gpu": cuda,
        "gpu_memory": memory,
        "gpu_memory_total": torch.cuda.mem_get_info()[1] if on_gpu else None,
        **processor(),
        "threads": task.stage.resources.cpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> dict[str, str]:
    """The processor's model, and the instruction sets by which digits differ between processors.

    `instructions`: of PyTorch's own kernels, then those of the processor that oneDNN and MKL choose from, and where
    the environment lowers one of the three, to what.
    """
    import torch

    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.rpartition(' ')[2]} {info[key]}" for key in NUMBERS if key in info]
    held = {*info.get("flags", info.get("Features", "")).split()}
    lowered = [f"{variable}={os.environ[variable]}" for variable in LOWERED if variable in os.environ]
    chosen = [torch.backends.cpu.get_cpu_capability(), *(flag for flag in INSTRUCTIONS if flag in held), *lowered]
    return {"cpu": f"{name} ({', '.join(numbers)})" if numbers else name, "instructions": " ".join(chosen)}


NUMBERS = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")  # a hypervisor may hide the name
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
LOWERED = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


def _cpuinfo() -> dict[str, str]:
    """Return Linux's facts of the first processor; nothing elsewhere."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {}


def not_shared(task: StageTask) -> str:
    """A sentence where this node does not see the folder that the driver sees; empty where it does."""
    mark = task.folders.mark
    if mark is None or Path(mark).exists():
        return ""
    folder = Path(mark).parent
    return f"{platform.node()} does not see {folder}, the folder that all nodes share; mount it there"
