"""What `/docs` says: the meaning of routes, bodies and answers.

The bodies' schemas are made from `samserve.requests`, which the worker checks them with;
here stands only what those models cannot say.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from samserve.serving.requests import AutomaskRequest, PromptRequest

from . import probe
from .registration import RegisterRequest

DESCRIPTION = """
Segment Anything and MobileSAM over HTTP, with [samapi](https://github.com/ksugar/samapi)'s
API, so that QuPath's SAM extension and samapi's scripts work unchanged.

Answers are GeoJSON Features in **pixels of the image sent**: origin at the top-left corner
of the first pixel, x right, y down, along pixel edges. Rasterising a Feature gives back the
mask, holes and islands included.

Every refusal has one shape: `{"error": {"code", "message", "field"}}`.

Paths work with and without their last slash. JSON may be UTF-8, UTF-16 or UTF-32, with a byte
order mark or without; bodies may be compressed, `Content-Encoding: gzip` or `zstd`.
"""

_REF = "#/components/schemas/{model}"

_ERROR = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}

_ERRORS: dict[int, str] = {
    400: "The body is not JSON, or it is incomplete or damaged.",
    404: "The model type is not loaded and has no stand-in, or the weights are not registered.",
    406: "There is no such `output_format`.",
    409: "`b64img` refers to a picture that is not remembered: send it in full.",
    413: "The body, as sent or decompressed, or the image is over the limit.",
    415: "The body or a part of it is in an encoding that is not read: `Content-Encoding` may be "
    "`gzip` or `zstd`.",
    422: "A field's value is wrong; `field` says which.",
    431: "The `Accept` header is too long.",
    503: "No worker is free and the queue is full, none is up, or the GPU ran out of memory. "
    "Try again.",
    504: "No answer in time.",
}

_SQUARE = {
    "type": "Polygon",
    "coordinates": [[[16, 16], [16, 48], [48, 48], [48, 16], [16, 16]]],
}


_FORM = {
    "type": "object",
    "description": "The fields of the JSON as parts: texts as they are, everything else as JSON. "
    "Or all of them as one JSON object in a part `request`.",
    "required": ["image"],
    "properties": {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "The image as a file, in place of `b64img`.",
        },
        "mask": {
            "type": "string",
            "format": "binary",
            "description": "A mask prompt as a file, in place of `b64mask`.",
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
    """The keyword arguments that document a POST route."""
    schema = {"$ref": _REF.format(model=model)}
    return {
        "summary": summary,
        "description": description,
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": schema, "example": request},
                    "multipart/form-data": {"schema": _FORM},
                },
            }
        },
        "responses": {
            200: {
                "description": "A JSON array of GeoJSON Features; `[]` where nothing was found. "
                "Other forms by `output_format` or the `Accept` header.",
                "headers": {
                    "X-Image-Pages": {
                        "description": "Pages of the picture, of which `page` chose one.",
                        "schema": {"type": "integer", "minimum": 1},
                    }
                },
                "content": {
                    "application/json": {"example": answer},
                    "application/geo+json": {
                        "example": {"type": "FeatureCollection", "features": answer, "pages": 1}
                    },
                    "application/vnd.coco-rle+json": {"example": [record]},
                },
            },
            **{s: {"description": d, "content": _ERROR} for s, d in _ERRORS.items()},
        },
    }


PROMPT = _segmentation(
    "Segment the objects prompted for",
    "By a box, points, a mask, or several of these together. One Feature per mask. `quality` is "
    "that mask's predicted IoU; `prompt_idx` says which of `prompts` it answers. A prompt "
    "whose mask is empty has no Feature.",
    "PromptRequest",
    probe.prompt("vit_t"),
    [_feature(prompt_idx=0)],
    {**_RECORD, "prompt_idx": 0},
)
AUTOMASK = _segmentation(
    "Segment every object",
    "segment-anything's automatic mask generation. Takes seconds to minutes; it has workers "
    "and a queue of its own, so that prompts do not wait behind it. A client that goes away ends "
    "it.\n\nA body that leaves `output_type` and `include_image_edge` open gets segment-anything's "
    "own behaviour. samapi 0.3 and later takes `Single mask` and false; so does a server that is "
    "started with `SAMSERVE_DEFAULTS=samapi`.\n\n"
    "`?stream=1`: the answer is lines of JSON (application/x-ndjson), `event` says of what "
    "kind: `progress` with `done` and `total` points; then every object as a `feature`; at the end "
    "`done` with the picture's `pages`, or `error`.",
    "AutomaskRequest",
    probe.automask("vit_t"),
    [_feature(stability_score=0.98, area=1024, bbox=[16, 16, 31, 31], point_coords=[[32.0, 32.0]])],
    {**_RECORD, "stability_score": 0.98, "point_coords": [[32.0, 32.0]]},
)
VERSION: dict[str, Any] = {"summary": "The server's version, as plain text"}
WEIGHTS: dict[str, Any] = {
    "summary": "The weights that are registered",
    "description": "Of one model type, or of all that are loaded; each type's own are called "
    "`default`. `name` and `url` are what `checkpoint_url` takes; `source` says where the "
    "file came from; `sha256` is that file's digest.\n\nA type that samapi's clients offer and "
    "that is not loaded has one entry, whose `name` says so and whose `url` leads to the 404 that "
    "explains. Where another type stands in for it (`SAMSERVE_STAND_IN`), the entries are that "
    "one's, and their names say so.",
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
    401: {"description": "The administrator's token is missing or wrong.", "content": _ERROR},
    403: {"description": "The server was started without such a token.", "content": _ERROR},
}

REGISTER: dict[str, Any] = {
    "summary": "Register weights of your own",
    "description": "The answer comes when `checkpoint_url` can choose the weights, or when the "
    "registration was cancelled. `GET /sam/progress/` shows the progress meanwhile.\n\nThe server "
    "downloads the file and checks that it holds the tensors of the model type. Only tensors "
    "are read: no code in the file ever runs, and a file that names functions of Python's own"
    " library is refused. Of a training checkpoint the network's tensors are taken, and the "
    "rest is left out. Then the weights get lanes and workers of their own. If a step fails, "
    "or the client goes away, nothing is left, except the beginning of a download that broke "
    "off: the next request continues it.\n\nThis differs from samapi: only an administrator "
    "with a token may register weights, only from allowed addresses, and a name or address "
    "that is registered already is an error.",
    "openapi_extra": {
        "security": _TOKEN,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _REF.format(model="RegisterRequest")},
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
        404: {"description": "The model type is not loaded.", "content": _ERROR},
        409: {
            "description": "The name or the URL is registered already, or others are just now.",
            "content": _ERROR,
        },
        413: {"description": "The file is over the limit.", "content": _ERROR},
        422: {
            "description": "The address is not allowed, or the file is no checkpoint of the type.",
            "content": _ERROR,
        },
        502: {"description": "The address did not give the whole file.", "content": _ERROR},
        503: {"description": "TorchServe or a worker does not take them.", "content": _ERROR},
    },
}
CANCEL: dict[str, Any] = {
    "summary": "Cancel the registration under way",
    "description": "Answers at once; the registration's own answer says when all is cleared away.",
    "openapi_extra": {"security": _TOKEN},
    "responses": {
        200: {"content": {"text/plain": {"example": "Cancel signal sent"}}},
        **_TOKEN_ERRORS,
    },
}
PROGRESS: dict[str, Any] = {
    "summary": "How far the registration of weights is, or else the oldest automask under way",
    "description": "`percent` is -1 where nothing is running; of a registration, how much is "
    "downloaded.",
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
HEALTHZ: dict[str, Any] = {"summary": "Alive: the gateway's own process answers"}
READYZ: dict[str, Any] = {
    "summary": "Ready: every lane has a READY worker and has answered a real inference",
    "description": "200 where all lanes are ready, else 503, with each lane's state.",
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
        503: {"description": "Some lane is not ready yet."},
    },
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
    """The OpenAPI document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        models = (PromptRequest, AutomaskRequest, RegisterRequest)
        _, bodies = models_json_schema(
            [(model, "validation") for model in models], ref_template=_REF
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(bodies["$defs"], Error=_ERROR_SCHEMA)
        components["securitySchemes"] = {"administrator": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema
