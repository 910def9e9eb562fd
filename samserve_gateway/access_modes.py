"""Who may use a gateway: who is on its machine, everybody, or who has a key.

The launcher asks before it starts anything, so this module needs no package of the gateway.
"""

from __future__ import annotations

from typing import Literal

from .addresses import is_loopback
from .keys import KeysFileError, read
from .settings import KEYS_FILE, OPEN, Settings

Mode = Literal["loopback", "open", "keys"]
"""Who may use the gateway: who is on this machine, who reaches it, or who has a key."""

MEANING: dict[Mode, str] = {
    "loopback": "only this machine reaches it; no key is needed",
    "open": f"everybody who reaches it may use it ({OPEN}=1)",
    "keys": f"every client needs an API key ({KEYS_FILE})",
}

FOR_EVERYBODY = frozenset({"/healthz", "/readyz"})
"""What a balancer asks without a key, as GET or HEAD."""


def check_access(settings: Settings) -> Mode:
    """Return who may use a gateway with these settings.

    Raises:
        KeysFileError: the gateway would be open to the network and nobody has said so, two
            settings contradict each other, or the file of keys is wrong or has no key.
    """
    keys_file, host = settings.api_keys_file, settings.host
    if keys_file is not None:
        if not read(keys_file)[0]:
            raise KeysFileError(f"{keys_file} has no keys. Add one with: samserve keys new NAME")
        if settings.open:
            raise KeysFileError(
                f"{OPEN}=1 says that no client needs a key, but {KEYS_FILE} names a file of keys. "
                "Set one of them only."
            )
        return "keys"
    if is_loopback(host):
        return "loopback"
    if settings.open:
        return "open"
    raise KeysFileError(
        f"The gateway would listen on {host}, where other machines reach it, and there are no API "
        f"keys. Make one with: samserve keys new NAME --file FILE, and set {KEYS_FILE}=FILE. "
        f"If everybody who reaches it may use it, set {OPEN}=1."
    )
