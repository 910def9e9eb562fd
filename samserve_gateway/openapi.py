"""The OpenAPI document, which the `/docs` page shows: routes, bodies, answers and errors.

The schemas of the bodies come from `samserve.serving.requests`, with which the worker validates
them. This module adds what those models cannot express.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from samserve.serving.headers import IMAGE_PAGES, OBJECTS, PREFER, QUALITY
from samserve.serving.requests import AutomaskRequest, EmbedRequest, PromptRequest

from . import probe
from .access_modes import FOR_EVERYBODY
from .registration import RegisterRequest

DESCRIPTION = """
Segment Anything and MobileSAM over HTTP, with the API of
[samapi](https://github.com/ksugar/samapi), so that QuPath's SAM extension and samapi's scripts work
unchanged.

Answers are GeoJSON Features in **pixels of the image sent**: origin at the top-left corner
of the first pixel, x to the right, y down. Outlines follow the edges of pixels: a Feature,
rasterised, is the mask again, with its holes and islands.

Every error has the same shape: `{"error": {"code", "message", "field"}}`.

A server may want an API key: as a header, or in the path, `/key/<key>/sam/`.

Paths work with and without their last slash. JSON may be UTF-8, UTF-16 or UTF-32, with or without a
byte order mark. Bodies may be compressed with `Content-Encoding: gzip` or `zstd`.
"""

REF = "#/components/schemas/{model}"

ERROR = {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}

ERRORS: dict[int, str] = {
    400: "The body is not JSON, or it is incomplete or damaged.",
    404: "The model type is not loaded and no other type stands in for it, or the weights are not "
    "registered.",
    406: "`output_format` is not one of the output formats.",
    409: "`b64img` is the digest of a picture that the server does not know: send it in full.",
    413: "The body, compressed or decompressed, or the image is larger than the limit.",
    415: "The body or a part of it has an unsupported encoding: `Content-Encoding` may be `gzip` "
    "or `zstd`.",
    422: "A field has a wrong value; `field` names the field.",
    431: "The `Accept` header is too long.",
    503: "The queue is full, no worker is running, or the GPU ran out of memory. Try again.",
    504: "The answer took longer than the time limit.",
}

PREFER_STRICT: dict[str, Any] = {
    "name": PREFER,
    "in": "header",
    "description": "`handling=strict`: refuse fields that are not known.",
    "schema": {"type": "string", "enum": ["handling=strict", "handling=lenient"]},
}

_SQUARE = {
    "type": "Polygon",
    "coordinates": [[[16, 16], [16, 48], [48, 48], [48, 16], [16, 16]]],
}


_FORM = {
    "type": "object",
    "description": "The same fields as in the JSON body, one part each: strings as plain text, "
    "everything else as JSON. Or all of them as one JSON object in the part `request`.",
    "required": ["image"],
    "properties": {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "The image file, in place of `b64img`.",
        },
        "mask": {
            "type": "string",
            "format": "binary",
            "description": "The image file of a mask prompt, in place of `b64mask`.",
        },
        "request": {"type": "string", "description": "The other fields, as JSON."},
    },
}


def _feature(**properties: object) -> dict[str, Any]:
    common = {"object_idx": 0, "label": "object", "quality": 0.97, "sam_model": "vit_t"}
    return {"type": "Feature", "geometry": _SQUARE, "properties": {**common, **properties}}


_RECORD = {
    "segmentation": {"size": [64, 64], "counts": "…"},
    "area": 1024,
    "bbox": [16, 16, 31, 31],
    "predicted_iou": 0.97,
}


def _segmentation(
    summary: str, description: str, model: str, request: Any, answer: Any, record: Any
) -> dict[str, Any]:
    """Return the keyword arguments that document a POST route."""
    schema = {"$ref": REF.format(model=model)}
    return {
        "summary": summary,
        "description": description,
        "openapi_extra": {
            "parameters": [PREFER_STRICT],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": schema, "example": request},
                    "multipart/form-data": {"schema": _FORM},
                },
            },
        },
        "responses": {
            200: {
                "description": "A JSON array of GeoJSON Features; `[]` if there are none. "
                "`output_format` or the `Accept` header chooses other formats.",
                "headers": {
                    IMAGE_PAGES: {
                        "description": "Number of pages of the picture. `page` chooses one.",
                        "schema": {"type": "integer", "minimum": 1},
                    },
                    OBJECTS: {
                        "description": "Number of objects, if the answer is an image.",
                        "schema": {"type": "integer", "minimum": 0},
                    },
                    QUALITY: {
                        "description": "The predicted IoU of each object, if the answer is an "
                        "image and has 1 to 100 objects.",
                        "schema": {"type": "string"},
                    },
                },
                "content": {
                    "application/json": {"example": answer},
                    "application/geo+json": {
                        "example": {"type": "FeatureCollection", "features": answer, "pages": 1}
                    },
                    "application/vnd.coco-rle+json": {"example": [record]},
                    "image/png": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **{s: {"description": d, "content": ERROR} for s, d in ERRORS.items()},
        },
    }


PROMPT = _segmentation(
    "Segment the objects of the prompts",
    "A prompt is a box, points, a mask, or several of these together. The answer has one Feature "
    "per mask. `quality` is the mask's predicted IoU; `prompt_idx` is the index in `prompts` of "
    "the prompt that it answers. A prompt whose mask is empty has no Feature.",
    "PromptRequest",
    probe.prompt("vit_t"),
    [_feature(prompt_idx=0)],
    {**_RECORD, "prompt_idx": 0},
)
AUTOMASK = _segmentation(
    "Segment every object",
    "segment-anything's automatic mask generation, or SAM 2's. It takes seconds to minutes. Its "
    "workers and its queue are separate, so prompts do not wait for it. If the client disconnects, "
    "it is cancelled.\n\nThe defaults of `output_type` and `include_image_edge` are "
    "segment-anything's. samapi 0.3 and later has the defaults `Single mask` and false, as has a "
    "server that was started with `SAMSERVE_DEFAULTS=samapi`. Both fields mean for SAM 2 what they "
    "mean for SAM 1. The default of `pred_iou_thresh` depends on the type.\n\n"
    "With `?stream=1` the answer is a stream of JSON lines (application/x-ndjson). The field "
    "`event` of each is its kind: `progress` with `done` and `total` points; then a `feature` for "
    "every object; at the end `done` with the picture's number of `pages`, or `error`.",
    "AutomaskRequest",
    probe.automask("vit_t"),
    [_feature(stability_score=0.98, area=1024, bbox=[16, 16, 31, 31], point_coords=[[32.0, 32.0]])],
    {**_RECORD, "stability_score": 0.98, "point_coords": [[32.0, 32.0]]},
)
AUTOMASK["responses"][200]["content"]["application/x-ndjson"] = {
    "schema": {"type": "string", "description": "An event on each line, with `?stream=1`."}
}
VERSION: dict[str, Any] = {"summary": "Return the server's version, as plain text"}
WEIGHTS: dict[str, Any] = {
    "summary": "List the weights that requests can choose",
    "description": "The weights of one model type, or of all types that are loaded. The weights "
    "that a type has by default are named `default`. `checkpoint_url` takes the `name` or the "
    "`url`; `source` says where the file came from; `sha256` is the file's digest.\n\nA type that "
    "samapi's clients offer but that is not loaded has one entry. Its `name` says that the type is "
    "not loaded, and a request with its `url` gets 404 and the reason. If another type stands in "
    "for it (`SAMSERVE_STAND_IN`), the list has that type's entries, and their names say so.",
    "responses": {
        200: {
            "content": {
                "application/json": {
                    "example": [
                        {
                            "type": "vit_t",
                            "name": "default",
                            "url": "https://…/mobile_sam.pt",
                            "source": "official",
                            "sha256": "6dbb90523a35…",
                        }
                    ]
                }
            }
        }
    },
}
_TOKEN: list[dict[str, list[str]]] = [{"administrator": []}]

_TOKEN_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The administrator's key is missing or wrong.", "content": ERROR},
    403: {
        "description": "The key is not an administrator's, or the server has no administrator.",
        "content": ERROR,
    },
}

REGISTER: dict[str, Any] = {
    "summary": "Register weights of your own",
    "description": "The answer comes when `checkpoint_url` can choose the weights, or when the "
    "registration was cancelled. Meanwhile `GET /sam/progress/` shows the progress.\n\nThe server "
    "downloads the file and checks that it contains the tensors of the model type. Only tensors "
    "are read: code in the file never runs, and a file that names functions of Python's standard "
    "library is refused. From a training checkpoint only the network's tensors are taken. Then "
    "the weights get lanes and workers of their own. If a step fails, or the client disconnects, "
    "nothing is left except the beginning of a download that broke off, which the next request "
    "continues.\n\nThis differs from samapi: only an administrator with a key may register "
    "weights, only from allowed addresses, and a name or address that is registered already is an "
    "error.",
    "openapi_extra": {
        "security": _TOKEN,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": REF.format(model="RegisterRequest")},
                    "example": {"type": "vit_t", "name": "nuclei", "url": "nuclei.pt"},
                }
            },
        },
    },
    "responses": {
        200: {
            "content": {
                "text/plain": {
                    "examples": {
                        "registered": {"value": "nuclei (nuclei.pt) is registered."},
                        "cancelled": {
                            "value": "The registration of nuclei (nuclei.pt) was cancelled."
                        },
                    }
                }
            }
        },
        **_TOKEN_ERRORS,
        404: {"description": "The model type is not loaded.", "content": ERROR},
        409: {
            "description": "The name or the URL is registered already, or other weights are being "
            "registered.",
            "content": ERROR,
        },
        413: {"description": "The file is larger than the limit.", "content": ERROR},
        422: {
            "description": "The address is not allowed, or the file is no checkpoint of the type.",
            "content": ERROR,
        },
        502: {"description": "The whole file could not be downloaded.", "content": ERROR},
        503: {"description": "TorchServe or a worker refuses the weights.", "content": ERROR},
    },
}
CANCEL: dict[str, Any] = {
    "summary": "Cancel the registration under way",
    "description": "The answer comes at once. The registration answers when its files and lanes "
    "are removed.",
    "openapi_extra": {"security": _TOKEN},
    "responses": {
        200: {"content": {"text/plain": {"example": "Cancel signal sent"}}},
        **_TOKEN_ERRORS,
    },
}
PROGRESS: dict[str, Any] = {
    "summary": "Return the progress of the registration of weights, or else of the oldest automask",
    "description": "A client sees its own automasks only, unless all clients are on the server's "
    "machine. `percent` is -1 if nothing is running. For a registration, it is the part of "
    "the file that has been downloaded.",
    "responses": {
        200: {
            "content": {
                "application/json": {
                    "example": {"message": "vit_t-automask: 512 of 1024 points", "percent": 50}
                }
            }
        }
    },
}
HEALTHZ: dict[str, Any] = {"summary": "Check that the gateway's process answers"}
READYZ: dict[str, Any] = {
    "summary": "Check that every lane has a READY worker and has answered a real inference",
    "description": "200 if all lanes are ready, else 503; with `?lanes=any`, if one is. A "
    "client with a key also gets the state of each lane; so does every client if the server "
    "wants no keys.",
    "responses": {
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "ready": True,
                        "lanes": {"vit_t": {"state": "ready", "workers": 1}},
                    }
                }
            }
        },
        503: {"description": "A lane is not ready yet."},
    },
}

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
    "administrator": {
        "type": "http",
        "scheme": "bearer",
        "description": "An administrator's API key or token.",
    },
}

_OF_CLIENTS = {
    "401": "The server wants an API key, and the request has none or a wrong one.",
    "429": "The client has more requests under way, or in this minute, than its share.",
}

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "field"],
            "properties": {
                "code": {"type": "string", "example": "invalid_field"},
                "message": {"type": "string", "example": "b64img: Field required."},
                "field": {"type": ["string", "null"], "example": "b64img"},
            },
        }
    },
}


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document. It is made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        models = (PromptRequest, AutomaskRequest, EmbedRequest, RegisterRequest)
        _, bodies = models_json_schema(
            [(model, "validation") for model in models], ref_template=REF
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(bodies["$defs"], Error=_ERROR_SCHEMA)
        components["securitySchemes"] = _SECURITY_SCHEMES
        document["security"] = [{}, {"bearer": []}, {"key": []}]  # {}: a server may want no key
        for path, operations in document["paths"].items():
            if path not in FOR_EVERYBODY:
                for operation in operations.values():
                    for status, description in _OF_CLIENTS.items():
                        refusal = {"description": description, "content": ERROR}
                        operation["responses"].setdefault(status, refusal)
        app.openapi_schema = document
    return app.openapi_schema
