"""The files of the processes' output stay bounded, and lose no reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from samserve_launcher import console_logs
from samserve_launcher.console_logs import N_KEPT, begin, end_of, rotate


def test_a_small_file_stays(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    rotate(log)
    log.write_text("small")
    rotate(log)
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]


def test_all_files_together_are_bounded(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    for number in range(20):
        log.write_text(f"{number:100}")
        rotate(log, max_bytes=99)
    assert len(list(tmp_path.iterdir())) == 1 + N_KEPT
    assert log.read_text() == ""
    kept = [int(log.with_name(f"x.log.{i}").read_text()) for i in range(1, N_KEPT + 1)]
    assert kept == [19, 18, 17, 16, 15]


def test_a_process_goes_on_writing_at_the_start_of_the_emptied_file(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    program = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=output, text=True
        ) as process,
    ):
        assert process.stdin is not None
        process.stdin.write("before\n")
        process.stdin.flush()
        while not log.read_text():
            pass
        rotate(log, max_bytes=3)
        process.stdin.write("after\n")
        process.stdin.close()
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "x.log.1").read_text() == "before\n"


def test_the_end_of_the_output_is_found_across_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert end_of(log) == ""
    log.write_text("a long line of before\n")
    rotate(log, max_bytes=1)
    assert end_of(log) == "a long line of before\n"
    log.write_text("why\n")
    assert end_of(log) == "a long line of before\nwhy\n"
    assert end_of(log, 11) == "before\nwhy\n"
    assert end_of(log, 2) == "y\n"


def test_the_end_is_of_the_last_process_only(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("another process ended so\n")
    begin(log)
    assert end_of(log) == ""
    with log.open("a") as file:
        file.write("why\n")
    assert end_of(log) == "why\n"
    rotate(log, max_bytes=1)
    assert end_of(log) == "why\n"
    begin(log)
    assert end_of(log) == ""
    assert "another process ended so" in (tmp_path / "x.log.2").read_text()


def test_the_bound_is_the_documented_one() -> None:
    assert (console_logs.MAX_BYTES, console_logs.N_KEPT) == (10 * 2**20, 5)
