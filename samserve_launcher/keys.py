"""`samserve keys` adds, lists and removes the API keys of a server.

    samserve keys new alice --file keys.txt
    samserve keys new bob --admin --file keys.txt
    samserve keys list --file keys.txt
    samserve keys remove alice --file keys.txt

A running server reads the file again within a second or two.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from samserve_gateway import keys
from samserve_gateway.keys import Key, KeysFileError
from samserve_gateway.settings import KEYS_FILE


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parsed = _parse(arguments)
    try:
        if parsed.action == "new":
            _new(parsed.file, parsed.name, parsed.admin)
        elif parsed.action == "remove":
            keys.remove(parsed.file, parsed.name)
            print(f"{parsed.name}'s key is removed from {parsed.file}")
        else:
            _list(parsed.file)
    except KeysFileError as error:
        print(f"samserve keys: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="samserve keys", description="Add, list and remove the API keys of a server."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a key, and print it once")
    new.add_argument("name", metavar="NAME", help="whose key it is; logs and limits use this name")
    new.add_argument("--admin", action="store_true", help="the key may also register weights")
    listing = actions.add_parser("list", help="list the names of the keys")
    removal = actions.add_parser("remove", help="remove a key; its owner gets 401 from then on")
    removal.add_argument("name", metavar="NAME")
    for action in (new, listing, removal):
        action.add_argument(
            "--file",
            type=Path,
            default=os.environ.get(KEYS_FILE) or None,
            help=f"the file of keys (default: the one that {KEYS_FILE} names)",
        )
    parsed = parser.parse_args(arguments)
    if parsed.file is None:
        parser.error(f"name the file of keys: --file FILE, or {KEYS_FILE}=FILE")
    if parsed.action == "new" and not keys.NAME.fullmatch(parsed.name):
        parser.error(
            "NAME must be 1 to 64 letters, digits, '.', '_', '@' and '-', the first a letter or a "
            "digit"
        )
    return parsed


def _new(file: Path, name: str, admin: bool) -> None:
    key = keys.new_key()
    keys.add(file, Key(name, keys.digest_of(key.encode()), admin))
    port = os.environ.get("SAMSERVE_PORT") or "8000"
    print(f"""\
{key}

This is {name}'s key{", an administrator's" if admin else ""}. Save it now:
it cannot be shown again, because {file} has only its hash.

  header        Authorization: Bearer {key}
  or header     X-API-Key: {key}
  QuPath, URL   http://HOST:{port}/key/{key}/sam/

The server wants keys if it is started with {KEYS_FILE}={file.resolve()}""")


def _list(file: Path) -> None:
    found, _ = keys.read(file)
    for key in sorted(found.values(), key=lambda key: key.name):
        print(f"{key.name}  {keys.ADMIN}" if key.admin else key.name)


if __name__ == "__main__":
    sys.exit(main())
