"""Lists the registered weights, and finds the family of lanes that answers a request.

A worker describes the weights that it has loaded. They never change while its lane exists, so each
lane is asked once. That works on whichever machine the workers run.

Another model type, the stand-in (`SAMSERVE_STAND_IN`), may answer for types that are not loaded.

`registration.py` registers weights.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from samserve.errors import NotFound, quoted
from samserve.model_types import (
    DEFAULT_WEIGHTS,
    KNOWN_TYPES,
    MODEL_TYPES,
    NOT_LOADED,
    UNSUPPORTED_TYPES,
    is_default_address,
)
from samserve.serving.lanes import mode_of, model_type_of

from .settings import PREFIX
from .torchserve import TorchServe
from .torchserve_answers import RESTART_S, TorchServeError

LOOK_EVERY_S = 5.0
"""How old the list of loaded types may be when a stand-in may have to answer."""


class Weights:
    """The weights that the lanes of one TorchServe have loaded.

    Args:
        stand_in: the model type that answers for types that are not loaded; None for no stand-in.
        must_be_loaded: types for which the stand-in does not answer. If one of them is not loaded,
            that is an error, which must not be hidden.

    Attributes:
        joining: families that are being registered. Requests cannot choose them yet.
    """

    def __init__(
        self,
        torchserve: TorchServe,
        stand_in: str | None = None,
        must_be_loaded: Sequence[str] = (),
    ) -> None:
        self._torchserve = torchserve
        self._stand_in = stand_in
        self._must_be_loaded = must_be_loaded
        self._known: dict[str, dict[str, str]] = {}  # by family
        self._loaded: list[str] = []
        self._loaded_at = -math.inf
        self.joining: set[str] = set()

    async def loaded(self) -> list[str]:
        """Return the model types that have lanes.

        Raises:
            TorchServeError: TorchServe gives no list of its lanes.
        """
        self._loaded = [lane for lane in await self._torchserve.lanes() if lane in MODEL_TYPES]
        self._loaded_at = time.monotonic()
        return self._loaded

    async def registered(self, model_types: list[str]) -> list[dict[str, str]]:
        """Return the workers' descriptions of these types' weights, each type's default first.

        Raises:
            TorchServeError: a worker does not answer.
        """
        for failed in await self._ask(await self._families(model_types)):
            raise failed
        return [known for kind in model_types for known in self._of_type(kind).values()]

    async def choices(self, model_type: str) -> list[dict[str, str]]:
        """Return the weights that a client may choose for this type.

        A known type that is not loaded has an entry, too: QuPath's extension shows the name of the
        first entry, and fails without a message if there is none.

        Raises:
            TorchServeError: TorchServe or a worker does not answer.
        """
        loaded = await self.loaded()
        if model_type in loaded or model_type not in KNOWN_TYPES:
            return await self.registered([model_type])
        if self._stand_in in loaded and model_type not in self._must_be_loaded:
            return [
                {**known, "type": model_type, "name": _name_in_place(known, model_type)}
                for known in await self.registered([str(self._stand_in)])
            ]
        where = "not loaded" if model_type in MODEL_TYPES else "not on this server"
        what = f"choose {_either(loaded)}" if loaded else "nothing is loaded"
        # No weights have this address: a request that chooses it gets 404 and the reason.
        return [{"type": model_type, "name": f"{where}: {what}", "url": NOT_LOADED + model_type}]

    async def answering(self, model_type: str) -> str:
        """Return the type that answers a request for this type: itself, or the stand-in.

        Raises:
            NotFound: the type is unknown, or neither it nor the stand-in is loaded.
        """
        if model_type in MODEL_TYPES and (
            self._stand_in is None or model_type in {self._stand_in, *self._must_be_loaded}
        ):
            return model_type  # if it is not loaded, TorchServe refuses the request
        if model_type not in KNOWN_TYPES or self._stand_in is None:
            raise await self.not_loaded(model_type)
        if time.monotonic() - self._loaded_at >= LOOK_EVERY_S:
            await self.loaded()
        if model_type in self._loaded:
            return model_type
        if self._stand_in not in self._loaded:
            raise await self.not_loaded(model_type)
        return self._stand_in

    async def family(
        self, model_type: str, checkpoint_url: str | None, client_type: str | None = None
    ) -> str:
        """Return the family of lanes with the weights of this name or URL.

        Args:
            model_type: the type that answers.
            checkpoint_url: name or URL of the weights; None for the type's default weights.
            client_type: the type that the client named, if `model_type` stands in for it.

        Raises:
            NotFound: no such weights are registered for this type.
            TorchServeError: a lane does not answer, and may have these weights.
        """
        if checkpoint_url is None:
            return model_type
        client_type = client_type or model_type
        family = self._find(model_type, checkpoint_url, client_type)
        if family is not None:
            return family
        types = {model_type, client_type}
        is_default = any(is_default_address(each, checkpoint_url) for each in types)
        if is_default and model_type in self._known:
            return model_type
        families = await self._families([model_type])
        if not families:
            return model_type  # the type is not loaded: TorchServe refuses the request
        failures = await self._ask([name for name in families if name not in self._known])
        # Weights registered with the default address have priority over the default weights.
        family = self._find(model_type, checkpoint_url, client_type)
        if family is not None or is_default:
            return family or model_type
        for failed in failures:
            raise failed
        choices = ", ".join(
            f"{known['name']!r} ({known['url']})" for known in self._of_type(model_type).values()
        )
        stands_in = "" if client_type == model_type else f", for which {model_type} stands in"
        raise NotFound(
            f"No weights {quoted(checkpoint_url)} are registered for {client_type}{stands_in}; "
            f"there are {choices}.",
            "checkpoint_url",
        )

    async def not_loaded(self, model_type: str) -> NotFound:
        """Return the refusal of a request for a type, or for a type's weights, without lanes.

        Raises:
            TorchServeError: TorchServe gives no list of its lanes, or the type must be loaded.
        """
        loaded = await self.loaded()
        names = f"Loaded: {' '.join(loaded) or 'none'}."
        if self._stand_in is not None and self._stand_in not in loaded:
            names += f" {PREFIX}STAND_IN names {self._stand_in}, which is not loaded either."
        if model_type in UNSUPPORTED_TYPES:
            return NotFound(
                f"Model type {model_type} is not part of this server: it has no SAM 3, "
                f"only {', '.join(MODEL_TYPES)}. {names}",
                "type",
            )
        if model_type not in MODEL_TYPES:
            return NotFound(
                f"There is no model type {quoted(model_type)}; there are {', '.join(MODEL_TYPES)}. "
                f"{names}",
                "type",
            )
        if model_type in loaded:
            return NotFound("These weights are no longer registered.", "checkpoint_url")
        if model_type in self._must_be_loaded:
            raise TorchServeError(
                f"Model type {model_type} is not loaded although this server should have it. It is "
                "still starting, or it failed to start.",
                503,
                retry_after_s=RESTART_S,
            )
        models = " ".join([*loaded, model_type])
        return NotFound(
            f"Model type {model_type} is not loaded. {names} "
            f"Add it with: samserve serve --models '{models}' (or make serve MODELS='{models}')",
            "type",
        )

    def forget(self, family: str) -> None:
        """Forget a family whose lanes are gone."""
        self._known.pop(family, None)
        self._loaded_at = -math.inf

    async def _families(self, model_types: list[str]) -> list[str]:
        """Return the families of these types that have lanes. Forget all that have none."""
        lanes = await self._torchserve.lanes()
        families = [lane for lane in lanes if mode_of(lane) == "prompt"]
        families = [family for family in families if family not in self.joining]
        self._known = {name: known for name, known in self._known.items() if name in families}
        return [name for name in families if model_type_of(name) in model_types]

    async def _ask(self, families: list[str]) -> list[TorchServeError]:
        """Ask a worker of each family for its weights. Return the errors of those that fail."""
        failures = []

        async def ask(family: str) -> None:
            try:
                description = await self._torchserve.worker_description(family)
                self._known[family] = description["weights"]
            except TorchServeError as error:
                failures.append(error)

        await asyncio.gather(*(ask(family) for family in families))
        return failures

    def _of_type(self, model_type: str) -> dict[str, dict[str, str]]:
        return {
            name: known
            for name, known in sorted(self._known.items())
            if model_type_of(name) == model_type
        }

    def _find(self, model_type: str, checkpoint_url: str, client_type: str) -> str | None:
        """Return the family whose weights have this name or URL, if it is known."""
        for family, known in self._of_type(model_type).items():
            names = [known["name"], known["url"]]
            if client_type != model_type:
                names.append(_name_in_place(known, client_type))
            if checkpoint_url in names:
                return family
        return None


def _name_in_place(known: dict[str, str], model_type: str) -> str:
    """Return the name of a stand-in's weights in the list of the type that it stands in for."""
    name = "" if known["name"] == DEFAULT_WEIGHTS else f" {known['name']}"
    return f"{known['type']}{name} in place of {model_type}"


def _either(names: Sequence[str]) -> str:
    """Return `a`, `a or b`, or `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
