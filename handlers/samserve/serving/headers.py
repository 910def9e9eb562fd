"""HTTP headers that the gateway and the worker exchange through TorchServe.

Letter case does not matter in HTTP. A worker gets the names as the sender spelled them.
"""

from __future__ import annotations

REQUEST_ID = "X-Request-Id"
"""Request and answer: the id of the request, by which its log lines are found."""

IMAGE_DIGEST = "X-Image-Digest"
"""Request: SHA-256 of the picture in hex. A balancer sends all requests with the same digest to
the same machine, which keeps the picture's embedding."""

IMAGE_PAGES = "X-Image-Pages"
"""Answer: the number of pages of the picture."""

STAND_IN = "Samserve-Stand-In"
"""Request: `true` if this lane answers in place of a model type that is not loaded. The `type` and
`checkpoint_url` in the body are then not the lane's."""

JOB = "Samserve-Job"
"""Request: the id of an automask job, by which its progress is reported and by which it can be
cancelled."""

MODE = "X-Mode"
"""Request: `prompt` if the automask lane shall answer a request for prompts, which is too heavy for
the prompt lane; `embed` if a lane shall only embed the picture."""

DEADLINE = "X-Deadline"
"""Request: the time, in seconds since 1970, after which nobody waits for the answer."""

OBJECTS = "X-Samserve-Objects"
"""Answer that is an image: the number of objects in it."""

QUALITY = "X-Samserve-Quality"
"""Answer that is an image: the predicted IoU of each object, if they are at most 100."""

PREFER = "Prefer"
"""Request: `handling=strict` if fields that are not known shall be refused (RFC 7240)."""

PREFERENCE_APPLIED = "Preference-Applied"
"""Answer: `handling=strict` if the request asked for that by its header."""

STREAM = "Samserve-Stream"
"""Request: `true` if the answer shall be a stream of events, with the job's progress."""
