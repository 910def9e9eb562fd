"""The commands for pictures: what is refused before anything begins, help, and completion."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from samserve.parameters import AutomaskParameters
from samserve_launcher.__main__ import COMMANDS, main
from samserve_launcher.automask import pages_in
from tests.support.scripted_server import LOADED, Reply, refusal, scripted


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAMSERVE_URL", raising=False)
    monkeypatch.delenv("SAMSERVE_API_KEY", raising=False)
    Image.new("L", (40, 30)).save("a.png")
    Image.new("L", (40, 30)).save("b.png")
    return "a.png"


def status_of(*words: str) -> int:
    try:
        return main(list(words))
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("automask nowhere.png", "there is no picture nowhere.png"),
        ("automask a.png -f svg", "no format 'svg'"),
        ("automask a.png b.png -o x.geojson", "-o must name a folder for 2 pictures"),
        ("automask a.png -f geojson,coco -o x.geojson", "-o must name a folder for 2 formats"),
        ("automask a.png --pages two", "--pages must be all, or numbers"),
        ("automask a.png --points-per-side 0", "--points-per-side: Input should be greater"),
        ("automask a.png --points-per-side many", "--points-per-side: Input should be a valid"),
        ("automask a.png --output-type none", "--output-type must be one of"),
        ("automask a.png --points-per-sid 8 --jobs 0", "number from 1 to 64"),
        ("automask a.png --server ftp://x", "server's address must be"),
        ("automask", "required: PATH"),
        ("segment a.png", "give a --box, a --point, or both"),
        ("segment a.png --box 1,2,3", "box X0,Y0,X1,Y1"),
        ("segment a.png --point 1,2,3,4", "point X,Y"),
        ("segment a.png --box 1,2,3,4 --box 1,2,3,4 --point 1,2", "without points"),
        ("segment a.png --box 1,2,3,4 -f geojson,coco -o x.geojson", "for 2 formats"),
        ("info --server http://", "server's address must be"),
        ("completion fish", "invalid choice"),
    ],
)
def test_a_wrong_command_is_a_line_and_status_2(
    picture: str, command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*command.split()) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert not said.out
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "command",
    [
        "automask a.png -o out",
        "segment a.png --box 1,2,3,4",
        "segment a.png --box 1,2,3,4 -o x.png",
    ],
)
def test_what_fails_on_the_way_is_a_line_and_status_1(
    picture: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert status_of(*command.split(), "--server", nobody) == 1
        assert status_of("info", "--server", nobody) == 1
    said = capsys.readouterr().err
    assert said.count("No server answers at") == 2
    key = refusal(401, "unauthorized", "This server wants an API key.")
    with scripted(key) as server:
        assert status_of(*command.split(), "--server", server.url, "--key", "my-secret") == 1
    said = capsys.readouterr().err
    assert "Give a key" in said
    assert "my-secret" not in said
    with scripted(LOADED, Reply(200, b"<html>")) as server:
        assert status_of(*command.split(), "--server", server.url) == 1
    assert "Is the address right?" in capsys.readouterr().err
    Path("a.png").write_bytes(b"no picture")
    assert status_of(*command.split()) == 1
    said = capsys.readouterr().err
    assert "not an image of a kind we read" in said
    assert "Traceback" not in said
    assert not Path("x.png").exists()
    assert not list(Path.cwd().glob("out/*"))


def test_pages() -> None:
    assert pages_in(None) is None
    assert pages_in("all") == "all"
    assert pages_in("0, 2,5-7") == [0, 2, 5, 6, 7]
    for text in ("", "-1", "1-", "a", "1,,2"):
        with pytest.raises(ValueError, match="--pages"):
            pages_in(text)


@pytest.mark.parametrize("command", ["segment", "automask", "info", "completion"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(command, "--help") == 0
    said = capsys.readouterr().out
    assert f"samserve {command}" in said
    if command == "automask":
        for name in AutomaskParameters.model_fields:
            assert f"--{name.replace('_', '-')}" in said
        assert "-f labels" in said


def test_the_help_of_samserve_shows_how_to_get_labels_of_a_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of("--help") == 0
    assert "samserve automask pictures/ -f labels -o out" in capsys.readouterr().out


def test_bash_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("completion", "bash") == 0
    script = capsys.readouterr().out
    complete = 'COMP_WORDS=(samserve "$@"); COMP_CWORD=$#; _shtab_samserve; echo "${COMPREPLY[@]}"'

    def completed(*words: str) -> set[str]:
        done = subprocess.run(
            ["bash", "-c", script + complete, "bash", *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return set(done.stdout.split())

    assert completed("") >= set(COMMANDS)
    assert completed("auto") == {"automask"}
    assert {"--points-per-side", "--points-per-batch"} <= completed("automask", "--points")
    assert completed("automask", "--model", "vit_") == {"vit_t", "vit_b", "vit_l", "vit_h"}
    assert completed("automask", "--model", "sam") == {"sam2_t", "sam2_s", "sam2_bp", "sam2_l"}


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m samserve_launcher completion bash | head -1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("segment a.png --box 1,2,3,4 -o a.png", "a.png is one of the pictures"),
        ("segment a.png --box 1,2,3,4 -o ./linked.png", "linked.png is one of the pictures"),
        ("automask a.png -o a.png", "a.png is one of the pictures"),
        ("automask a.png a.labels.png -f labels -o .", "a.labels.png is one of the pictures"),
        ("automask a.png --pages 5-2", "the first page must not be after the last one"),
        ("automask a.png --pages 0-99999999999", "not after 99999"),
        ("automask a.png -f ,", "-f names no format"),
        ("segment a.png --box 1,2,3,4 -f ,", "-f names no format"),
        ("automask a.png --jobs 0", "-j/--jobs: it must be a number from 1 to 64, not '0'"),
        ("automask a.png --jobs two", "it must be a number from 1 to 64, not 'two'"),
        ("automask a.png --nonsense", "unrecognized arguments: --nonsense"),
        ("segment . --box 1,2,3,4", ". is a folder"),
        ("segment a.png --box 30,20,10,40", "with X0 < X1 and Y0 < Y1, not '30,20,10,40'"),
        ("segment a.png --box 1,2,nan,4", "not '1,2,nan,4'"),
        ("segment a.png --box a,b,c,d", "not 'a,b,c,d'"),
        ("segment a.png --point 1,2,3", "X,Y,0 for the background, not '1,2,3'"),
        ("segment a.png --point=-1", "not '-1'"),
    ],
)
def test_a_wrong_command_is_one_line_and_changes_no_file(
    picture: str, command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("linked.png").hardlink_to("a.png")
    Path("a.labels.png").write_bytes(Path("b.png").read_bytes())
    before = {path.name: path.read_bytes() for path in Path.cwd().iterdir()}
    assert status_of(*command.split()) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path.cwd().iterdir()} == before


@pytest.mark.parametrize("words", [("--box", "-5,-5,20,20"), ("--box", "-.5,-1e1,3,4")])
def test_a_coordinate_may_be_negative(
    picture: str, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("segment", "a.png", *words, "--server", "http://127.0.0.1:1") == 1
    assert "No server answers at" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-o", "x.png"], ["-f", "labels"], []])
def test_a_failure_of_one_picture_is_one_line(
    picture: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.png").write_bytes(b"no picture")
    assert status_of("segment", "a.png", "--box", "1,2,3,4", *words) == 1
    said = capsys.readouterr().err
    assert said.startswith("samserve segment: a.png is not an image")
    assert said.count("\n") == 1


@pytest.mark.parametrize("output", ["notes.txt/out", "notes.txt/x.geojson", "/dev/null/x"])
def test_an_output_that_cannot_be_a_folder_is_said_before_any_work(
    picture: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("x")
    with scripted() as server:
        command = ["automask", "a.png", "-o", output, "--server", server.url]
        assert status_of(*command) == 1
        assert not server.received
    said = capsys.readouterr().err
    assert "Not a directory" in said
    assert said.count("\n") == 1


def test_a_wrong_path_in_the_address_is_said(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(refusal(404, "not_found", "Not Found.")) as server:
        assert status_of("info", "--server", f"{server.url}/wrong") == 1
    assert "Is the address right?" in capsys.readouterr().err


def test_a_full_terminal_is_a_line() -> None:
    done = subprocess.run(
        f"{sys.executable} -m samserve_launcher completion bash > /dev/full",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "samserve completion: No space left on device\n"
