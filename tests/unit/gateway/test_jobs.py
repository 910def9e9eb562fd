"""Automasks under way: their progress, and their end when nobody waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from samserve.serving.jobs import JobFolder, JobProgress
from samserve_gateway import jobs as jobs_module
from samserve_gateway.jobs import Jobs
from tests.support import torchserve

NOTHING = {"message": "Nothing is running.", "percent": -1}


def test_progress_is_the_oldest_jobs(tmp_path: Path) -> None:
    folder, jobs = JobFolder(tmp_path), Jobs(tmp_path)
    assert jobs.progress() == NOTHING
    with jobs.job() as first, jobs.job() as second:
        one, other = first["Samserve-Job"], second["Samserve-Job"]
        assert jobs.progress() == NOTHING
        folder.write(one, JobProgress("vit_t-automask", 512, 1024, started=2.0))
        assert jobs.progress() == {"message": "vit_t-automask: 512 of 1024 points", "percent": 50}
        folder.write(other, JobProgress("vit_b-automask", 1, 3, started=1.0))
        both = {"message": "vit_b-automask: 1 of 3 points, and 1 more", "percent": 33}
        assert jobs.progress() == both
        folder.write(other, JobProgress("vit_b-automask", 0, 0, started=1.0))
        assert jobs.progress()["percent"] == 0
    assert jobs.progress() == NOTHING
    assert list(tmp_path.iterdir()) == []


def test_progress_of_a_job_that_is_not_under_way_is_not_shown(tmp_path: Path) -> None:
    """A worker that was killed cannot remove its file."""
    with torchserve.gateway(jobs_directory=tmp_path) as gateway:
        left = tmp_path / f"{'a' * 32}.progress"
        left.write_text('{"lane": "vit_t-automask", "done": 35, "total": 100, "started": 1.0}')
        assert gateway.get("/sam/progress/").json() == NOTHING


def test_a_gateway_removes_what_the_one_before_has_left(tmp_path: Path) -> None:
    for kind in ("progress", "awaited", "cancelled", "4711"):
        (tmp_path / f"{'a' * 32}.{kind}").touch()
    (tmp_path / "of somebody else").touch()
    Jobs(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "of somebody else"]


def test_what_a_killed_worker_left_is_removed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "SWEEP_EVERY_S", 0.0)
    jobs, left = Jobs(tmp_path), tmp_path / f"{'a' * 32}.4711"
    left.touch()
    with jobs.job() as headers:
        assert list(tmp_path.iterdir()) == [tmp_path / f"{headers['Samserve-Job']}.awaited"]


def test_without_a_folder_there_is_no_progress(gateway: torchserve.Gateway) -> None:
    assert gateway.get("/sam/progress/").json() == NOTHING


def test_a_job_is_cancelled_when_its_request_ends(tmp_path: Path) -> None:
    jobs, folder = Jobs(tmp_path), JobFolder(tmp_path)
    with jobs.job() as headers:
        assert not folder.is_cancelled(headers["Samserve-Job"])
    assert folder.is_cancelled(headers["Samserve-Job"])

    def fail() -> None:
        with jobs.job() as failing:
            headers.update(failing)
            folder.write(headers["Samserve-Job"], JobProgress("vit_t-automask", 1, 2, started=1.0))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert folder.is_cancelled(headers["Samserve-Job"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_lost_takes_no_answer_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "jobs"
    jobs = Jobs(folder)
    folder.rmdir()
    with jobs.job() as headers:
        assert headers == {}
    assert "has no progress and cannot be cancelled" in caplog.text
    assert jobs.progress() == NOTHING


def test_a_client_sees_its_own_jobs_only(tmp_path: Path) -> None:
    jobs, folder = Jobs(tmp_path), JobFolder(tmp_path)
    with jobs.job("alice") as of_alice, jobs.job("bob") as of_bob:
        for number, headers in enumerate((of_alice, of_bob)):
            progress = JobProgress("vit_t-automask", number, 10, started=float(number))
            folder.write(headers["Samserve-Job"], progress)
        assert jobs.progress("alice")["percent"] == 0
        assert jobs.progress("bob") == {"message": "vit_t-automask: 1 of 10 points", "percent": 10}
        assert jobs.progress("carol") == NOTHING
        assert "and 1 more" in jobs.progress()["message"]
    assert jobs.progress("alice") == NOTHING


def test_without_a_folder_a_job_has_no_id() -> None:
    with Jobs(None).job() as headers:
        assert headers == {}
