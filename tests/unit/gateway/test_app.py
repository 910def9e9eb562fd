"""The application as a whole: its routes, its imports, and its OpenAPI document."""

from __future__ import annotations

import subprocess
import sys

from samserve import __version__
from tests.support.torchserve import Gateway

OPERATIONS = {
    ("/sam/", "post"): "prompt_sam__post",
    ("/sam/automask/", "post"): "automask_sam_automask__post",
    ("/sam/progress/", "get"): "progress_sam_progress__get",
    ("/sam/images/", "put"): "upload_sam_images__put",
    ("/sam/version/", "get"): "version_sam_version__get",
    ("/sam/weights/", "get"): "registered_sam_weights__get",
    ("/sam/weights/", "post"): "register_sam_weights__post",
    ("/sam/weights/cancel/", "get"): "cancel_sam_weights_cancel__get",
    ("/healthz", "get"): "healthz_healthz_get",
    ("/readyz", "get"): "readyz_readyz_get",
}
"""Client generators make names of the operation ids, so these must not change."""


def test_the_routes_and_their_operation_ids(gateway: Gateway) -> None:
    document = gateway.get("/openapi.json").json()
    operations = {
        (path, method): operation["operationId"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert operations == OPERATIONS


def test_every_operation_is_explained_and_has_its_errors_shape(gateway: Gateway) -> None:
    document = gateway.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, method in OPERATIONS:
        operation = document["paths"][path][method]
        assert operation["summary"]
        for status, response in operation["responses"].items():
            if status[0] == "4" and status != "422":
                schema = response["content"]["application/json"]["schema"]
                assert schema["$ref"] == "#/components/schemas/Error"
    for path, schema in (("/sam/", "PromptRequest"), ("/sam/automask/", "AutomaskRequest")):
        body = document["paths"][path]["post"]["requestBody"]["content"]
        assert body["application/json"]["schema"]["$ref"] == f"#/components/schemas/{schema}"
        assert "multipart/form-data" in body
        assert all(field["description"] for field in schemas[schema]["properties"].values())
    error = schemas["Error"]["properties"]["error"]
    assert error["required"] == ["code", "message", "field"]


def test_the_pages_need_no_internet(gateway: Gateway) -> None:
    page = gateway.get("/docs").content.decode()
    assert "/static-offline-docs/" in page
    assert "//cdn" not in page
    assert gateway.get("/static-offline-docs/swagger-ui.css").status == 200


def test_the_version_is_plain_text(gateway: Gateway) -> None:
    got = gateway.get("/sam/version/")
    assert (got.content.decode(), got.headers["Content-Type"]) == (
        __version__,
        "text/plain; charset=utf-8",
    )


def test_it_needs_no_pytorch() -> None:
    program = (
        "import sys, samserve_gateway.app, samserve_gateway.__main__\n"
        "print(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
