"""Automasks under way: their progress, and their end when nobody waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from samserve.serving.jobs import JobFolder, JobProgress
from samserve_gateway.jobs import Jobs
from tests.support import torchserve

NOTHING = {"message": "Nothing is running.", "percent": -1}


def test_progress_is_the_oldest_jobs(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with torchserve.gateway(jobs_directory=tmp_path) as gateway:
        assert gateway.get("/sam/progress/").json() == NOTHING
        folder.write("a" * 32, JobProgress("vit_t-automask", 512, 1024, started=2.0))
        one = gateway.get("/sam/progress/").json()
        assert one == {"message": "vit_t-automask: 512 of 1024 points", "percent": 50}
        folder.write("b" * 32, JobProgress("vit_b-automask", 1, 3, started=1.0))
        two = gateway.get("/sam/progress/").json()
        assert two == {"message": "vit_b-automask: 1 of 3 points, and 1 more", "percent": 33}
        folder.write("b" * 32, JobProgress("vit_b-automask", 0, 0, started=1.0))
        assert gateway.get("/sam/progress/").json()["percent"] == 0
        for job_id in ("a" * 32, "b" * 32):
            folder.forget(job_id)
        assert gateway.get("/sam/progress/").json() == NOTHING


def test_without_a_folder_there_is_no_progress(gateway: torchserve.Gateway) -> None:
    assert gateway.get("/sam/progress/").json() == NOTHING


def test_an_exception_cancels_the_job(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    with jobs.job() as headers:
        pass
    assert not JobFolder(tmp_path).is_cancelled(headers["Samserve-Job"])
    with pytest.raises(KeyError), jobs.job() as headers:
        raise KeyError
    assert JobFolder(tmp_path).is_cancelled(headers["Samserve-Job"])


def test_a_job_that_cannot_be_cancelled_hides_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "jobs"
    jobs = Jobs(folder)
    folder.rmdir()
    with pytest.raises(KeyError), jobs.job():
        raise KeyError
    assert "could not be cancelled" in caplog.text


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
