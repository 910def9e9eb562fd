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
