"""Clients in other languages: Java's `HttpClient` and curl."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from samserve_launcher.java import java_home
from tests.support.tools import unavailable

JAVA_CLIENT = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;

/** Posts the file args[1] as JSON to args[0], args[2] times; prints each status and answer. */
public class Client {
    public static void main(String[] args) throws Exception {
        var client = HttpClient.newHttpClient();
        for (int i = 0; i < Integer.parseInt(args[2]); i++) {
            var request = HttpRequest.newBuilder(URI.create(args[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofFile(Path.of(args[1])))
                .build();
            var response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body().replace("\\n", ""));
        }
    }
}
"""


def java(source: str, url: str, body: bytes, *arguments: str) -> str:
    """Run a Java program with the URL, a file with the body, and arguments; return its output."""
    home = java_home()
    if not _has_compiler(home):
        unavailable(f"{home} has no Java compiler: `apt-get install default-jdk-headless`")
    with tempfile.TemporaryDirectory() as folder:
        program, sent = Path(folder) / "Client.java", Path(folder) / "body"
        program.write_text(source)
        sent.write_bytes(body)
        return _output([home / "bin" / "java", program, url, sent, *arguments])


def curl(url: str, body: bytes, *arguments: str) -> str:
    """Send the body as JSON with curl and these options, and return its output."""
    program = shutil.which("curl")
    if program is None:
        unavailable("curl missing: `apt-get install curl`")
    if "HTTP2" not in _output([program, "--version"]):
        unavailable("this curl has no HTTP/2: `apt-get install curl`")
    with tempfile.NamedTemporaryFile() as sent:
        sent.write(body)
        sent.flush()
        options = ["-H", "Content-Type: application/json", "--data-binary", f"@{sent.name}"]
        return _output([program, "--silent", "--noproxy", "*", *options, *arguments, url])


@functools.cache
def _has_compiler(home: Path) -> bool:
    modules = _output([home / "bin" / "java", "--list-modules"])
    return "jdk.compiler@" in modules and "java.net.http@" in modules


def _output(command: list[str | Path]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
