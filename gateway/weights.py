"""Which weights are registered, and which family of lanes answers with them.

A worker says what weights it has, and says the same for as long as its lane is there; so the
choice by `checkpoint_url` asks each lane once. That works wherever the workers run.

Registers nothing: `registration.py` does.
"""

from __future__ import annotations

import asyncio

from samserve.errors import NotFound
from samserve.lanes import mode_of, model_type_of

from .torchserve import TorchServe, TorchServeError


class Weights:
    """What the lanes of one TorchServe have loaded.

    Attributes:
        joining: families that are being registered, which are nobody's choice yet.
    """

    def __init__(self, torchserve: TorchServe) -> None:
        self._torchserve = torchserve
        self._known: dict[str, dict[str, str]] = {}  # by family
        self.joining: set[str] = set()

    async def registered(self, model_types: list[str]) -> list[dict[str, str]]:
        """What the workers tell now of the weights of these types, each type's own first.

        Raises:
            TorchServeError: one of them cannot be asked.
        """
        for failed in await self._ask(await self._families(model_types)):
            raise failed
        return [known for kind in model_types for known in self._of_type(kind).values()]

    async def family(self, model_type: str, wanted: str | None) -> str:
        """Whose lanes answer with the weights of this name or URL; the type's own for None.

        Raises:
            NotFound: no such weights are registered for this type.
            TorchServeError: that cannot be told, for a lane does not answer.
        """
        if wanted is None:
            return model_type
        found = self._named(model_type, wanted)
        if found is not None:
            return found
        families = await self._families([model_type])
        if not families:
            return model_type  # it is not loaded, which its lane will say
        failures = await self._ask([name for name in families if name not in self._known])
        found = self._named(model_type, wanted)
        if found is not None:
            return found
        for failed in failures:
            raise failed
        there = ", ".join(
            f"{known['name']!r} ({known['url']})" for known in self._of_type(model_type).values()
        )
        raise NotFound(
            f"No weights {wanted!r} are registered for {model_type}; there are {there}.",
            "checkpoint_url",
        )

    def forget(self, family: str) -> None:
        """Its lanes are gone."""
        self._known.pop(family, None)

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

    def _named(self, model_type: str, wanted: str) -> str | None:
        for family, known in self._of_type(model_type).items():
            if wanted in (known["name"], known["url"]):
                return family
        return None
