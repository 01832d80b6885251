"""What ranks need is imported once, before they are forked; what cannot be shared, each imports by itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench import forkserver
from bench.backends.machine import kernel_folder
from bench.forkserver import ForkserverError
from bench.group import Group, RankError
from bench.protocol import Check, GroupSpec
from bench.records import Dtype, Failed, Host, Line, Op, Point, Role
from bench.supervisor import Effort, Supervisor, Task
from tests.bench.libraries import Library
from tests.builders import ROOT, small_workload

pytestmark = pytest.mark.usefixtures("on_cpus")

POINT = Point("alltoall", Op.DISPATCH, Dtype.BF16, {"num_slices": 1, "num_in_flight": 1})
OF_DEEPEP = Point("deepep_v2", Op.DISPATCH, Dtype.BF16, {"num_sms": 24})
SPEC = GroupSpec(2, "cpu", shared_gpus=False, workload=small_workload(), points=[POINT, OF_DEEPEP])
"""Its ranks may measure DeepEP, so that deep_ep is imported for them; most tests run only the all-to-all."""


def run_group(folder: Path, *, startup_s: float = 120) -> None:
    """Starts ranks, checks a point and ends them."""
    group = Group(SPEC, log_folder=folder, startup_s=startup_s)
    try:
        assert [checked.wrong for checked in group.check(Check(POINT), deadline_s=60)] == [None, None]
    finally:
        group.kill()


def test_two_groups_of_ranks_import_a_library_once_and_after_torch(library: Library, tmp_path: Path) -> None:
    library.write("note('torch' in sys.modules)")
    run_group(tmp_path)
    run_group(tmp_path)
    assert library.notes() == ["True"]


def test_a_library_that_asks_whether_there_is_a_gpu_at_its_import_is_answered_by_nvml(
    library: Library, tmp_path: Path
) -> None:
    library.write("note(os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'])")
    run_group(tmp_path)
    assert library.notes() == ["1"]


def test_a_library_is_imported_anew_for_ranks_with_another_environment(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write("note(os.environ.get('EP_BUFFER_DEBUG'))")
    for value in ("1", "1", "2"):
        monkeypatch.setenv("EP_BUFFER_DEBUG", value)
        run_group(tmp_path)
    assert library.notes() == ["1", "2"]


@pytest.mark.parametrize(("of_user", "seen"), [(None, "0"), ("1", "1")])
def test_imports_and_ranks_have_the_variables_of_their_libraries_unless_the_user_has_set_them(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_user: str | None, seen: str
) -> None:
    library.write("note(os.environ['EP_REUSE_NCCL_COMM'])\nraise RuntimeError(os.environ['EP_REUSE_NCCL_COMM'])")
    if of_user is not None:
        monkeypatch.setenv("EP_REUSE_NCCL_COMM", of_user)
    lines: list[Line] = []
    anchor = Task(OF_DEEPEP, "", Role.ANCHOR)
    supervisor = Supervisor(SPEC, Effort(1, 3, 60.0, 120.0), anchors=[anchor], sink=lines.append, log_folder=tmp_path)
    (record,) = supervisor.run([anchor])
    assert isinstance(record.outcome, Failed)
    assert record.outcome.message == f"RuntimeError: {seen}"
    assert set(library.notes()) == {seen}
    settings = [line.settings for line in lines if isinstance(line, Host)]
    assert {"EP_REUSE_NCCL_COMM" in set_by_us for set_by_us in settings} == {of_user is None}
    assert {set_by_us["EP_JIT_CACHE_DIR"] for set_by_us in settings} == {str(kernel_folder("deepep_v2"))}


def test_ranks_have_the_variables_that_an_import_ahead_has_set_but_not_ours_for_that_import(
    library: Library, tmp_path: Path
) -> None:
    library.write(
        "os.environ.setdefault('NCCL_EP_HOME', 'found')\n"
        "def ElasticBuffer(*_, **__): raise RuntimeError([name for name in os.environ if name in SEEN])\n"
        "SEEN = ['NCCL_EP_HOME', 'PYTORCH_NVML_BASED_CUDA_CHECK']"
    )
    group = Group(SPEC, log_folder=tmp_path, startup_s=120)
    with pytest.raises(RankError, match=r"^RuntimeError: \['NCCL_EP_HOME'\]$"):
        group.check(Check(OF_DEEPEP), deadline_s=60)
    group.kill()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no GPU')", "raises RuntimeError"),
        ("sys.exit('no GPU')", "raises SystemExit"),
        ("import torch\ntorch.cuda._initialized = True", "touches a GPU"),
    ],
)
def test_a_library_that_cannot_be_shared_is_tried_once_and_then_left_to_the_ranks(
    library: Library, tmp_path: Path, capfd: pytest.CaptureFixture[str], code: str, reason: str
) -> None:
    library.write(f"note(os.getpid())\n{code}")
    run_group(tmp_path)
    run_group(tmp_path)
    assert len(library.notes()) == 1
    assert capfd.readouterr().err == f"note: the import of deep_ep {reason}: every rank imports it by itself\n"


def test_an_import_that_does_not_end_counts_as_ranks_that_do_not_start(library: Library, tmp_path: Path) -> None:
    library.write("time.sleep(600)")
    with pytest.raises(RankError, match="the import of torch and deep_ep took longer than"):
        run_group(tmp_path, startup_s=12)


def test_what_a_library_prints_before_it_ends_the_process_is_told(library: Library, tmp_path: Path) -> None:
    library.write("print('no such device', flush=True)\nos._exit(3)")
    with pytest.raises(ForkserverError, match="the forkserver has ended: no such device"):
        forkserver.fork("rank 0", tmp_path / "log", preload=["deep_ep"], settings={}, timeout_s=120)


def test_groups_that_threads_start_at_once_measure_beside_each_other(library: Library, tmp_path: Path) -> None:
    library.write("note(os.getpid())")
    done: list[int] = []

    def run(number: int) -> None:
        run_group(tmp_path / str(number))
        done.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2]
    assert len(library.notes()) == 1


def test_ranks_outlive_the_thread_that_started_them(library: Library, tmp_path: Path) -> None:
    library.write("")
    groups: list[Group] = []
    thread = threading.Thread(target=lambda: groups.append(Group(SPEC, log_folder=tmp_path, startup_s=120)))
    thread.start()
    thread.join()
    (group,) = groups
    assert [checked.wrong for checked in group.check(Check(POINT), deadline_s=60)] == [None, None]
    group.kill()


def test_the_end_of_the_forkserver_ends_every_rank_and_another_one_follows(library: Library, tmp_path: Path) -> None:
    library.write("note(os.getpid())")
    group = Group(SPEC, log_folder=tmp_path, startup_s=120)
    forkserver.end()
    with pytest.raises(RankError, match=r"rank \d closed its output"):
        group.check(Check(POINT), deadline_s=60)
    group.kill()
    run_group(tmp_path)
    assert len(library.notes()) == 2


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a driver with")
@pytest.mark.parametrize(("status", "touched"), [(3, False), (0, True), (100, True)])
def test_a_process_has_touched_a_gpu_once_the_driver_counts_gpus_for_it(
    tmp_path: Path, status: int, *, touched: bool
) -> None:
    """3 is CUDA_ERROR_NOT_INITIALIZED, which every driver function returns before cuInit."""
    driver = tmp_path / "libdriver.so"
    source = f"int cuDeviceGetCount(int *count) {{ *count = 0; return {status}; }}"
    compiler = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", driver, "-x", "c", "-"]
    subprocess.run(compiler, input=source, text=True, check=True)
    code = (
        f"import ctypes; from bench.preload import has_touched_gpu as has; before = has(); ctypes.CDLL({str(driver)!r})"
    )
    line = [sys.executable, "-c", f"{code}; print(before, has())"]
    process = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", str(touched)]
