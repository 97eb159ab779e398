"""One stage run in this process: stored, diverged, crashed; nothing but plain data crosses the boundary."""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from pretune.cluster import join
from pretune.outcomes import Failure
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Store
from pretune.trainables import checkpoints
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.digest import content_digest
from pretune.worker import stage as stage_module
from pretune.worker.execute import execute
from pretune.worker.failures import NO_SPACE, describe, failed
from pretune.worker.stage import run_worker
from pretune.worker.task import Folders, StageTask


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    torch.set_num_threads(1)
    return Folders(str(tmp_path / "store"), str(tmp_path / "cache"), None)


def tasks(tiny: dict[str, Any], folders: Folders) -> dict[str, StageTask]:
    """The first pretraining and the first fine-tuning on it."""
    _, stages = make_plan(from_dict(tiny), lambda data: content_digest(data, None))
    first = next(stage for stage in stages if stage.kind == "pretrain")
    child = next(stage for stage in stages if stage.parent == first)
    return {stage.kind: StageTask(stage, f"a {stage.name}", 0.0, folders) for stage in (first, child)}


def ignore(values: dict[str, float]) -> None:
    return None


def test_a_fine_tuning_runs_on_the_pretraining_in_the_store(tiny: dict[str, Any], folders: Folders) -> None:
    made, store = tasks(tiny, folders), Store(Path(folders.store))
    first = execute(made["pretrain"], ignore)
    second = execute(made["finetune"], ignore)
    assert (first.state, second.state) == ("finished", "finished"), (first.cause, second.cause)
    assert "val/pretext_loss" in first.metrics
    assert "test/jaccard" in second.metrics
    entry = store.find(made["finetune"].fingerprint)
    assert entry is not None
    assert entry.metrics == second.metrics
    assert {"model.safetensors", "history.json", "notes.json"} <= entry.files.keys()
    assert entry.about["label"] == "a finetune"


def test_what_is_stored_is_not_run_again(tiny: dict[str, Any], folders: Folders) -> None:
    task = tasks(tiny, folders)["pretrain"]
    first = execute(task, ignore)

    def refuse(values: dict[str, float]) -> None:
        raise AssertionError("it ran")

    assert execute(task, refuse) == first
    assert len(list((Path(folders.store) / task.fingerprint).glob("*/"))) == 1


@pytest.mark.parametrize(("asked", "sent", "opened"), [("auto", "streaming", "streaming"), ("auto", "auto", "auto"),
                                                       ("resident", "streaming", "resident")])  # fmt: skip
def test_images_come_from_where_the_driver_says_unless_the_study_does(
    asked: str, sent: Any, opened: str, tiny: dict[str, Any], folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks(tiny, folders)["pretrain"]
    stage = replace(task.stage, data=task.stage.data.model_copy(update={"source": asked}))
    found: list[str] = []

    def note(data: Any, *given: Any, **named: Any) -> Any:
        found.append(data.source)
        raise DataError("enough")

    monkeypatch.setattr("pretune.trainables.data.sources.open_set", note)
    assert execute(replace(task, stage=stage, source=sent), ignore).state == "crashed"
    assert found == [opened]


@pytest.mark.parametrize(
    ("readable", "kind"), [(True, Failure.BAD_DATA), (False, Failure.ERROR)], ids=["damaged", "not to be opened"]
)
def test_a_damaged_file_that_a_stream_meets_is_final_and_one_that_cannot_be_opened_is_not(
    tiny: dict[str, Any],
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    readable: bool,
    kind: Failure,
) -> None:
    """What a file holds stays as it is; a disk or a network may be well again at the next try."""
    for i in range(12):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (9 * i, 0, 0)).save(tmp_path / "d" / f"{i}.jpg")
    (tmp_path / "d" / "5.jpg").write_bytes((tmp_path / "d" / "5.jpg").read_bytes()[:-200])
    if not readable:
        real = Path.read_bytes

        def read(path: Path) -> bytes:
            if path.name == "5.jpg":
                raise OSError(errno.EIO, "Input/output error")
            return real(path)

        monkeypatch.setattr(Path, "read_bytes", read)
    data = {"dataset": "image-folder", "root": str(tmp_path / "d"), "cache_size": 32, "source": "streaming"}
    tiny["data"] |= {"files": data | {"split": {"test": 0.1, "val": 0.1}}}
    tiny["pretrain"] |= {"data": "files", "sees": "all", "batch_size": 12}
    outcome = execute(tasks(tiny, folders)["pretrain"], ignore)
    assert (outcome.state, outcome.failure) == ("crashed", kind)
    assert ("5.jpg: damaged" if readable else "5.jpg: cannot be opened (Input/output error)") in outcome.cause


def test_a_divergence_is_an_outcome_that_is_stored(tiny: dict[str, Any], folders: Folders) -> None:
    tiny["pretrain"]["optimizer"] = {"name": "sgd", "lr": 1e30}
    task = tasks(tiny, folders)["pretrain"]
    outcome = execute(task, ignore)
    assert outcome.state == "diverged"
    assert "pretext_loss is " in outcome.cause
    assert " at step 1" in outcome.cause
    entry = Store(Path(folders.store)).find(task.fingerprint)
    assert entry is not None
    assert (entry.outcome, entry.metrics) == ("diverged", {})
    assert execute(task, ignore) == outcome


def test_a_fault_is_an_outcome_with_its_cause_and_leaves_a_traceback(tiny: dict[str, Any], folders: Folders) -> None:
    task = tasks(tiny, folders)["pretrain"]

    def fail(values: dict[str, float]) -> None:
        raise RuntimeError("CUDA out of memory\nmore")

    outcome = execute(task, fail)
    assert outcome.state == "crashed"
    assert outcome.cause.startswith("RuntimeError: CUDA out of memory | more (test_execute.py:")
    assert Store(Path(folders.store)).find(task.fingerprint) is None
    (error,) = (Path(folders.store) / task.fingerprint).glob("*/error.txt")
    assert "Traceback" in error.read_text()
    assert execute(task, ignore).state == "finished"


def test_a_stop_goes_through(tiny: dict[str, Any], folders: Folders) -> None:
    """Tune stops a function with SystemExit: that is no fault of the stage."""

    def stop(values: dict[str, float]) -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        execute(tasks(tiny, folders)["pretrain"], stop)


def test_a_missing_parent_is_said(tiny: dict[str, Any], folders: Folders) -> None:
    outcome = execute(tasks(tiny, folders)["finetune"], ignore)
    assert outcome.state == "crashed"
    assert "is no longer in the store; run the study again" in outcome.cause


def test_a_store_that_cannot_be_written_is_a_cause_and_no_exception(tiny: dict[str, Any], folders: Folders) -> None:
    task = tasks(tiny, folders)["pretrain"]
    Path(folders.store).mkdir()
    (Path(folders.store) / task.fingerprint).write_text("a file in the way")
    outcome = execute(task, ignore)
    assert outcome.state == "crashed"
    assert outcome.cause.split(":")[0] in ("NotADirectoryError", "FileExistsError")


def test_a_disk_that_fills_up_while_the_result_is_kept_is_a_cause(
    tiny: dict[str, Any], folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretune.store.store.write_atomically", full)
    outcome = execute(tasks(tiny, folders)["pretrain"], ignore)
    assert outcome.state == "crashed"
    assert "No space left on device" in outcome.cause


def test_a_stage_that_was_cut_off_goes_on_from_its_state(
    tiny: dict[str, Any], folders: Folders, monkeypatch: Any
) -> None:
    """A state that an earlier attempt left after the last step: nothing is trained, the metrics are those of it."""
    task = tasks(tiny, folders)["pretrain"]
    whole = execute(task, ignore)
    store = Store(Path(folders.store))
    store.remove(task.fingerprint)
    monkeypatch.setattr("pretune.trainables.loop.CheckpointTimer.due", lambda clock: True)

    def cut(values: dict[str, float]) -> None:
        if values["step"] == 6:
            raise SystemExit(1)

    with pytest.raises(SystemExit):
        execute(task, cut)
    state = store.resumable(task.fingerprint)
    loaded = checkpoints.load_state(state, torch.device("cpu"))
    assert loaded is not None
    assert loaded["step"] == 5
    steps: list[float] = []
    again = execute(task, lambda values: steps.append(values["step"]))
    assert again._replace(costs={}) == whole._replace(costs={})  # which are wall times
    assert steps == [5, 6]  # where it goes on, and its only step


def test_a_cause_is_one_line_with_its_place() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        text = describe(error)
    assert text.startswith("ValueError: two | lines (test_execute.py:")
    assert "\n" not in text


def test_a_cause_can_be_stored_whatever_the_file_is_called() -> None:
    """A Parquet column takes no lone surrogates, which Python has for a name that is not UTF-8."""
    text = describe(ValueError(os.fsdecode(b"caf\xe9.png: cut off")))
    assert text == r"ValueError: caf\udce9.png: cut off"
    assert pa.array([text]).to_pylist() == [text]


def test_a_node_that_does_not_see_the_shared_folder_says_so_and_makes_nothing_there(
    tiny: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    """Else /shared would be made on its own disk, and every stage there be lost with it."""
    marked = replace(folders, mark=str(tmp_path / "store" / ".seen-1"))
    task = tasks(tiny, marked)["pretrain"]
    outcome = execute(task, ignore)
    assert (outcome.state, outcome.failure) == ("crashed", Failure.NOT_SHARED)
    assert f"{platform.node()} does not see {tmp_path / 'store'}" in outcome.cause
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="does not see"):  # one of several workers, on another node
        run_worker(task, tmp_path / "attempt", ignore, torch.device("cpu"), None)
    with join.marked(tmp_path / "store") as mark:
        task = tasks(tiny, replace(folders, mark=str(mark)))["pretrain"]
        assert StageTask.from_json(task.to_json()) == task
        assert execute(task, ignore).state == "finished"
    assert not mark.exists()


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("/elsewhere/cache.tmp", Failure.NODE_DISK_FULL),
        ("store/abc/model.safetensors", Failure.STORE_FULL),  # by its quota, where its disk has room
        (None, Failure.STORE_FULL),
    ],
)
def test_a_full_disk_of_one_node_alone_does_not_stop_the_study(
    where: str | None, kind: Failure, tiny: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    task = tasks(tiny, folders)["pretrain"]

    def fail(values: dict[str, float]) -> None:
        raise OSError(errno.ENOSPC, NO_SPACE, *([str(tmp_path / where)] if where else []))

    outcome = execute(task, fail)
    assert (outcome.state, outcome.failure) == ("crashed", kind)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
            Failure.OUT_OF_MEMORY,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Failure.OUT_OF_MEMORY),
        (MemoryError(), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), Failure.OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Failure.OUT_OF_MEMORY),
        (RuntimeError(f"I/O error: {NO_SPACE} (os error 28)"), Failure.STORE_FULL),  # as safetensors says it
        (RuntimeError("CUDA error: device-side assert triggered"), Failure.ERROR),
        (ValueError("moco: a queue of 4 cannot hold a batch of 6"), Failure.DEFECT),
        (KeyError("head.weight"), Failure.DEFECT),
        (pa.ArrowInvalid("not a Parquet file"), Failure.ERROR),  # a ValueError too; the file may be whole the next time
    ],
    ids=[
        "CPU",
        "GPU",
        "numpy",
        "context",
        "cuBLAS",
        "cuDNN",
        "safetensors",
        "device assert",
        "argument",
        "key",
        "damaged file",
    ],
)
def test_exceptions_become_kinds_of_failure(error: Exception, kind: Failure, tmp_path: Path) -> None:
    outcome = failed(error, 64, tmp_path)
    assert (outcome.state, outcome.failure) == ("crashed", kind)
    assert ("lower batch_size (now 64)" in outcome.cause) is (kind is Failure.OUT_OF_MEMORY)


def test_a_gpu_that_torch_does_not_find_is_a_crash_and_not_the_cpu(
    tiny: dict[str, Any], folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = execute(replace(tasks(tiny, folders)["pretrain"], gpus=1.0), ignore)
    assert (outcome.state, outcome.failure) == ("crashed", Failure.NO_GPU)
    assert "`gpus: 0` under `resources` trains on the CPU" in outcome.cause


def test_a_processor_is_known_by_model_and_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypervisors hide names ("Intel(R) Xeon(R) Processor"): family, model and stepping stay."""
    info = {"model name": "Intel(R) Xeon(R) Processor", "cpu family": "6", "model": "143", "stepping": "8"}
    monkeypatch.setattr(stage_module, "_cpuinfo", lambda: info | {"flags": "fpu avx2 avx512f amx_tile amx_int8"})
    for name in stage_module.LOWERED:
        monkeypatch.delenv(name, raising=False)
    found = stage_module.processor()
    assert found["cpu"] == "Intel(R) Xeon(R) Processor (family 6, model 143, stepping 8)"
    kernels = torch.backends.cpu.get_cpu_capability()
    assert found["instructions"] == f"{kernels} avx2 avx512f amx_tile"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert stage_module.processor()["instructions"] == f"{kernels} avx2 avx512f amx_tile ONEDNN_MAX_CPU_ISA=AVX2"
    monkeypatch.setattr(
        stage_module, "_cpuinfo", lambda: {"CPU implementer": "0x41", "CPU part": "0xd40", "Features": "asimd sve"}
    )
    assert stage_module.processor()["cpu"].endswith("(implementer 0x41, part 0xd40)")
    assert stage_module.processor()["instructions"].startswith(f"{kernels} asimd sve")
    monkeypatch.setattr(stage_module, "_cpuinfo", dict)
    assert set(stage_module.processor()) == {"cpu", "instructions"}
