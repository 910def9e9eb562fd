"""This module writes the config.properties of one server from config/ and its options."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

from samserve import places
from samserve.machine import available_memory, usable_cores
from samserve.serving.lanes import Mode, lane_of, mode_of, model_type_of
from samserve_gateway.settings import ADMIN_TOKEN, KEYS_FILE

from .errors import ServerError
from .options import LOOPBACK, Options


def read_properties(text: str) -> dict[str, str]:
    """Parse Java properties: comments, `key=value`, and lines continued by a backslash.

    config.properties uses nothing else of the format.
    """
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def configuration(options: Options, worker_host: str | None = None) -> str:
    """Return config/config.properties, followed by the lines that these options change.

    Args:
        worker_host: the address of TorchServe's APIs if it is one of several behind a load
            balancer. Its APIs then take requests without tokens, and only the network protects
            them. None: it is the only one on this machine, on loopback and with tokens.

    Raises:
        ServerError: config.properties lacks a lane.
    """
    text = (places.config_folder() / "config.properties").read_text()
    lanes = json.loads(read_properties(text)["models"])
    prompt_workers = options.prompt_workers
    if prompt_workers is None and not two_prompt_workers_fit(options):
        prompt_workers = 1
    for lane, family in options.lanes().items():
        # Registered weights get the settings of their model type.
        like = lane_of(model_type_of(lane), mode_of(lane))
        if like not in lanes:
            raise ServerError(f"config/config.properties has no lane {like} under `models`.")
        lanes[lane] = {
            version: {**settings, "marName": f"{family}.mar"}
            for version, settings in lanes[like].items()
        }
        is_prompt = mode_of(lane) == "prompt"
        workers = prompt_workers if is_prompt else options.automask_workers
        if workers is not None:
            for version in lanes[lane].values():
                version.update(minWorkers=workers, maxWorkers=workers)
    host = worker_host or LOOPBACK
    may_have_admin = bool(os.environ.get(ADMIN_TOKEN) or os.environ.get(KEYS_FILE))
    can_register = worker_host is None and may_have_admin
    changes = {
        "inference_address": f"http://{host}:{options.inference_port}",
        "management_address": f"http://{host}:{options.management_port}",
        "metrics_address": f"http://{host}:{options.metrics_port}",
        "metrics_config": places.config_folder() / "metrics.yaml",
        "model_store": options.models_dir,
        "load_models": ",".join(f"{lane}={family}" for lane, family in options.lanes().items()),
        "models": json.dumps(lanes),
        # Registering weights needs this API. Without TorchServe's tokens anybody could use it.
        "enable_model_api": "true" if can_register else "false",
        "allowed_urls": f"file://{options.models_dir}/.*",
        "disable_token_authorization": "false" if worker_host is None else "true",
    }
    lines = "\n".join(f"{key}={value}" for key, value in changes.items())
    return f"{text}\n# --- From the options of this start.\n{lines}\n"


PROCESS_BYTES = {"vit_t": 2 * 2**30, "sam2_t": 3 * 2**30, "sam2_s": 3 * 2**30}
"""Memory of a worker process by model type, with its pictures. docs/operations.md has figures."""

LARGE_PROCESS_BYTES = 4 * 2**30
"""Memory of a worker process of the other model types, without the weights, which they share."""

OTHER_BYTES = 2 * 2**30
"""Memory of TorchServe, the gateway and the embeddings in /dev/shm."""


def two_prompt_workers_fit(options: Options) -> bool:
    """Return whether each prompt lane can have two workers beside one of its automask lane.

    On a GPU they could not: the shares of its memory (`gpu_memory`) are for one worker of each
    lane.
    """
    if sys.platform == "darwin" or shutil.which("nvidia-smi") is not None:
        return False
    needed = OTHER_BYTES
    for family in options.families():
        needed += 3 * PROCESS_BYTES.get(model_type_of(family), LARGE_PROCESS_BYTES)
    available = available_memory()
    return available is None or available >= needed


def threads_per_worker(config: str) -> dict[Mode, int]:
    """Return the threads of each worker by mode.

    The workers of an automask lane together have a thread for each core, and those of a prompt lane
    two: while one of them makes the embedding of a new picture, the other is mostly idle.
    """
    properties = read_properties(config)
    lanes = json.loads(properties["models"])
    most: dict[Mode, int] = {"prompt": 1, "automask": 1}
    for loaded in properties["load_models"].split(","):
        lane = loaded.split("=")[0]
        mode = mode_of(lane)
        most[mode] = max(most[mode], *(v["minWorkers"] for v in lanes[lane].values()))
    cores = usable_cores()
    return {
        "prompt": min(cores, max(1, 2 * cores // most["prompt"])),
        "automask": max(1, cores // most["automask"]),
    }
