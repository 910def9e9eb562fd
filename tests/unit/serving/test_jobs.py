"""What a run says of itself, and that it stops when it should."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from samserve.progress import Job
from samserve.serving.jobs import JobFolder, JobProgress

ONE, OTHER = "1" * 32, "2" * 32


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "jobs")


def test_two_processes_talk_by_a_folder(tmp_path: Path) -> None:
    worker, gateway = JobFolder(tmp_path), JobFolder(tmp_path)
    gateway.begin(ONE)
    gateway.begin(OTHER)
    late = JobProgress("vit_t-automask", 64, 1024, started=2.0)
    early = JobProgress("vit_t-automask", 1, 9, started=1.0)
    worker.write(ONE, late)
    worker.write(OTHER, early)
    assert gateway.running() == [early, late]
    worker.write(OTHER, JobProgress("vit_t-automask", 2, 9, started=1.0))
    assert [progress.done for progress in gateway.running()] == [2, 64]
    assert not worker.is_cancelled(ONE)
    gateway.cancel(ONE)
    assert worker.is_cancelled(ONE)
    assert not worker.is_cancelled(OTHER)
    assert gateway.running({OTHER}) == gateway.running()
    worker.forget(OTHER)
    assert gateway.running() == []
    gateway.cancel(OTHER)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_goes_on_writes_no_progress(folder: JobFolder, tmp_path: Path) -> None:
    """The gateway has removed the file of a job that ended; nobody would remove it again."""
    folder.begin(ONE)
    folder.write(ONE, JobProgress("vit_t-automask", 1, 9, started=1.0))
    folder.cancel(ONE)
    folder.write(ONE, JobProgress("vit_t-automask", 2, 9, started=1.0))
    assert list((tmp_path / "jobs").iterdir()) == []


@pytest.mark.parametrize("age_s", [60, 10_000, -10_000], ids=["old", "very old", "clock set back"])
@pytest.mark.parametrize("kind", ["progress", "awaited", "cancelled", "4711"])
def test_old_files_of_no_job_are_removed(tmp_path: Path, kind: str, age_s: float) -> None:
    folder = JobFolder(tmp_path)
    for job_id in (ONE, OTHER):
        path = tmp_path / f"{job_id}.{kind}"
        path.touch()
        os.utime(path, times=(time.time() - age_s,) * 2)
    young, foreign = tmp_path / f"{'3' * 32}.{kind}", tmp_path / "foreign.progress"
    young.touch()
    foreign.touch()
    os.utime(foreign, times=(0, 0))
    folder.sweep([OTHER], older_than_s=50)
    assert set(tmp_path.iterdir()) == {tmp_path / f"{OTHER}.{kind}", young, foreign}


def test_forgetting_what_never_was(folder: JobFolder) -> None:
    folder.forget(ONE)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"lane": 1}', b"\xff"])
def test_garbage_in_the_folder(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{ONE}.progress").write_bytes(content)
    assert JobFolder(tmp_path).running() == []


@pytest.mark.parametrize("job_id", ["", "../" * 4, "1" * 31, "1" * 33, "G" * 32, "1" * 31 + "/"])
def test_no_other_files_are_touched(folder: JobFolder, job_id: str) -> None:
    for act in (folder.begin, folder.cancel, folder.is_cancelled):
        with pytest.raises(ValueError, match="no id of a job"):
            act(job_id)


def test_what_cannot_be_written_is_not_known(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "jobs")
    (tmp_path / "jobs").rmdir()
    folder.write(ONE, JobProgress("vit_t-automask", 1, 2, 0.0))
    assert folder.running() == []


def test_a_run_reports_in_order_from_every_thread() -> None:
    said: list[tuple[int, int]] = []
    job = Job(report=lambda done, total: said.append((done, total)))
    job.begin(400)

    def work() -> None:
        for _ in range(100):
            assert job.may_go_on()
            job.advance(1)
            time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said[0] == (0, 400)
    assert said[-1] == (400, 400)
    assert said == sorted(said)
    assert job.stopped is None


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        (lambda: Job(cancelled=lambda: True), "cancelled"),
        (lambda: Job(deadline_s=0), "timeout"),
    ],
    ids=["cancelled", "timeout"],
)
def test_a_run_stops_and_stays_stopped(stop: Callable[[], Job], why: str) -> None:
    job = stop()
    job.begin(9)
    assert not job.may_go_on()
    assert job.stopped == why
    assert not job.may_go_on()


def test_a_cancelled_run_is_not_late() -> None:
    answers = iter([False, True])
    job = Job(cancelled=lambda: next(answers), deadline_s=100)
    assert job.may_go_on()
    assert not job.may_go_on()
    assert job.stopped == "cancelled"
