"""What can be set? (`python -m ien.config`)"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ien.config import Config, schema
from ien.config.problems import allowed, by_dotted_key
from ien.errors import OneLineParser, told_in_one_line


def _listing() -> Iterator[str]:
    for key, setting in by_dotted_key(Config).items():
        choice = "R4, R8 or R<N>, or R1" if key == "mode" else allowed(setting)
        default = f"default {json.dumps(setting['default'])}" if "default" in setting else "required"
        yield f"{key}: {setting['description']}\n    {choice}; {default}"


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line asks for."""
    parser = OneLineParser(prog="python -m ien.config", description="List every setting of a run.")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema instead (configs/schema.json)")
    with told_in_one_line():
        if parser.parse_args(argv).schema:
            print(json.dumps(schema(), indent=2, ensure_ascii=False))
        else:
            print("\n".join(_listing()))


if __name__ == "__main__":
    main()
