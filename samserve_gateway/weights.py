"""Which weights are registered, and which family of lanes answers with them.

A worker says what weights it has, and says the same for as long as its lane is there; so the
choice by `checkpoint_url` asks each lane once. That works wherever the workers run.

A model type that is not loaded may be answered by another one, its stand-in, where the server is
started so (`SAMSERVE_STAND_IN`).

Registers nothing: `registration.py` does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from samserve.errors import NotFound
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
from .torchserve import TorchServe, TorchServeError

LOOK_EVERY_S = 5.0
"""How long the list of loaded types is believed when a stand-in may have to answer."""


class Weights:
    """What the lanes of one TorchServe have loaded.

    Args:
        stand_in: the model type that answers for those that are not loaded; None: none does.
        must_be_loaded: types for which nothing stands in: where they are missing, that is a fault
            that must show.

    Attributes:
        joining: families that are being registered, which are nobody's choice yet.
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
        self._looked = -math.inf
        self.joining: set[str] = set()

    async def loaded(self) -> list[str]:
        """The model types that have lanes.

        Raises:
            TorchServeError: TorchServe does not tell.
        """
        self._loaded = [lane for lane in await self._torchserve.lanes() if lane in MODEL_TYPES]
        self._looked = time.monotonic()
        return self._loaded

    async def registered(self, model_types: list[str]) -> list[dict[str, str]]:
        """What the workers tell now of the weights of these types, each type's own first.

        Raises:
            TorchServeError: one of them cannot be asked.
        """
        for failed in await self._ask(await self._families(model_types)):
            raise failed
        return [known for kind in model_types for known in self._of_type(kind).values()]

    async def choices(self, model_type: str) -> list[dict[str, str]]:
        """What a client may choose for this type.

        A known type that is not loaded has an entry too. QuPath's extension takes the first of
        the list, fails without a word where there is none, and shows the entry's name.

        Raises:
            TorchServeError: TorchServe or a worker cannot be asked.
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
        # The address leads to no weights, so that a request that names it gets 404, which explains.
        return [{"type": model_type, "name": f"{where}: {what}", "url": NOT_LOADED + model_type}]

    async def answering(self, model_type: str) -> str:
        """The type that answers a request for this one: itself, or its stand-in.

        Raises:
            NotFound: there is no such type, or neither is loaded.
        """
        if model_type in MODEL_TYPES and (
            self._stand_in is None or model_type in {self._stand_in, *self._must_be_loaded}
        ):
            return model_type  # if it is not loaded, its lane will say so
        if model_type not in KNOWN_TYPES or self._stand_in is None:
            raise await self.not_loaded(model_type)
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            await self.loaded()
        if model_type in self._loaded:
            return model_type
        if self._stand_in not in self._loaded:
            raise await self.not_loaded(model_type)
        return self._stand_in

    async def family(
        self, model_type: str, wanted: str | None, asked_type: str | None = None
    ) -> str:
        """Whose lanes answer with the weights of this name or URL; the type's own for None.

        Args:
            model_type: the type that answers.
            asked_type: the type that the client named, if `model_type` stands in for it.

        Raises:
            NotFound: no such weights are registered for this type.
            TorchServeError: that cannot be told, for a lane does not answer.
        """
        if wanted is None:
            return model_type
        asked_type = asked_type or model_type
        found = self._named(model_type, wanted, asked_type)
        if found is not None:
            return found
        types = {model_type, asked_type}
        is_default = any(is_default_address(each, wanted) for each in types)
        if is_default and model_type in self._known:
            return model_type
        families = await self._families([model_type])
        if not families:
            return model_type  # it is not loaded, which its lane will say
        failures = await self._ask([name for name in families if name not in self._known])
        # Weights that were registered with that very address come before the type's own.
        found = self._named(model_type, wanted, asked_type)
        if found is not None or is_default:
            return found or model_type
        for failed in failures:
            raise failed
        there = ", ".join(
            f"{known['name']!r} ({known['url']})" for known in self._of_type(model_type).values()
        )
        stands_in = "" if asked_type == model_type else f", for which {model_type} stands in"
        raise NotFound(
            f"No weights {wanted!r} are registered for {asked_type}{stands_in}; there are {there}.",
            "checkpoint_url",
        )

    async def not_loaded(self, model_type: str) -> NotFound:
        """The refusal of a request for this type.

        Raises:
            TorchServeError: TorchServe does not tell what is loaded, or the type should be loaded.
        """
        loaded = await self.loaded()
        names = f"Loaded: {' '.join(loaded) or 'none'}."
        if self._stand_in is not None and self._stand_in not in loaded:
            names += f" {PREFIX}STAND_IN names {self._stand_in}, which is not loaded either."
        if model_type in UNSUPPORTED_TYPES:
            return NotFound(
                f"Model type {model_type} is not part of this server: it has no SAM 2 or SAM 3, "
                f"only {', '.join(MODEL_TYPES)}. {names}",
                "type",
            )
        if model_type not in MODEL_TYPES:
            return NotFound(
                f"There is no model type {model_type!r}; there are {', '.join(MODEL_TYPES)}. "
                f"{names}",
                "type",
            )
        if model_type in loaded:
            return NotFound("These weights are registered no longer.", "checkpoint_url")
        if model_type in self._must_be_loaded:
            raise TorchServeError(
                f"Model type {model_type} is not loaded although this server should have it. It is "
                "starting, or it failed, and then its log says why.",
                503,
            )
        models = " ".join([*loaded, model_type])
        return NotFound(
            f"Model type {model_type} is not loaded. {names} "
            f"Add it with: make serve MODELS='{models}'",
            "type",
        )

    def forget(self, family: str) -> None:
        """Its lanes are gone."""
        self._known.pop(family, None)
        self._looked = -math.inf

    async def _families(self, model_types: list[str]) -> list[str]:
        """Those of these types that are there; the others are forgotten."""
        lanes = await self._torchserve.lanes()
        there = [lane for lane in lanes if mode_of(lane) == "prompt" and lane not in self.joining]
        self._known = {name: known for name, known in self._known.items() if name in there}
        return [name for name in there if model_type_of(name) in model_types]

    async def _ask(self, families: list[str]) -> list[TorchServeError]:
        """What they tell is known then; gives the failures of those that tell nothing."""
        failures = []

        async def ask(family: str) -> None:
            try:
                described = await self._torchserve.worker_description(family)
                self._known[family] = described["weights"]
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

    def _named(self, model_type: str, wanted: str, asked_type: str) -> str | None:
        for family, known in self._of_type(model_type).items():
            names = [known["name"], known["url"]]
            if asked_type != model_type:
                names.append(_name_in_place(known, asked_type))
            if wanted in names:
                return family
        return None


def _name_in_place(known: dict[str, str], model_type: str) -> str:
    """What a stand-in's weights are called in the list of the type that they stand in for."""
    name = "" if known["name"] == DEFAULT_WEIGHTS else f" {known['name']}"
    return f"{known['type']}{name} in place of {model_type}"


def _either(names: Sequence[str]) -> str:
    """`a`, `a or b`, or `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
