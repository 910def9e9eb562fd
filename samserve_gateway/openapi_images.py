"""The documentation of `PUT /sam/images/` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from samserve.serving.headers import IMAGE_PAGES

from . import probe
from .openapi import ERROR, ERRORS, PREFER_STRICT, REF

_UPLOADED: dict[str, Any] = {
    "headers": {IMAGE_PAGES: {"schema": {"type": "integer", "minimum": 1}}},
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["digest", "width", "height", "pages"],
                "properties": {
                    "digest": {
                        "type": "string",
                        "pattern": "^sha256:[0-9a-f]{64}$",
                        "description": "What stands for the picture as `b64img` from now on.",
                    },
                    "width": {"type": "integer", "minimum": 1},
                    "height": {"type": "integer", "minimum": 1},
                    "pages": {"type": "integer", "minimum": 1},
                },
            },
            "example": {"digest": f"sha256:{'5' * 64}", "width": 64, "height": 64, "pages": 1},
        }
    },
}

_NOT_HERE = (406, 431)
"""Statuses that concern the format of other answers."""

UPLOAD: dict[str, Any] = {
    "summary": "Send a picture ahead",
    "description": "The picture is encoded, so that the first prompt on it is as quick as the next "
    "ones. The answer has its `digest`, which stands for the picture as `b64img` in further "
    "requests: the SHA-256 of its base64 text without line breaks. The body is the image file "
    "itself, with any Content-Type; or JSON with `b64img`; or a form with the file `image`. If the "
    "server forgets the picture, a request with its digest gets 409: send it again.",
    "openapi_extra": {
        "parameters": [PREFER_STRICT],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "application/json": {
                    "schema": {"$ref": REF.format(model="EmbedRequest")},
                    "example": {"type": "vit_t", "b64img": probe.DISC_PNG},
                },
            },
        },
    },
    "responses": {
        200: {"description": "The picture was known already.", **_UPLOADED},
        201: {"description": "The picture was encoded.", **_UPLOADED},
        **{
            status: {"description": description, "content": ERROR}
            for status, description in ERRORS.items()
            if status not in _NOT_HERE
        },
    },
}
