"""Every group of flags through Megatron's own parser and `validate_args`, with the bridge on.

    python -m tests.conformance.flag_validation MEGATRON_LM_PATH

Prints one JSON object: "parser", the flags that the checkout's training parser knows, and "groups", for each
group its error ("" when the arguments pass), what was printed, and the args afterwards
that the table of flags sets.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from typing import Any

from tests.conformance.flag_groups import Group, words
from tests.conformance.flag_groups_new import ALL_GROUPS

PLACES = ("tmp", "data", "vocab", "merges", "words", "tiktoken", "splits")


def validated(group: Group, folder: str) -> dict[str, Any]:
    """Error, output and settled args of one group."""
    from megatron.training.arguments import parse_args, validate_args
    from mindspeed_ms.patches import flags

    os.environ.update({"WORLD_SIZE": str(group.ranks), "RANK": "0", **dict(group.environment)})
    sys.argv = [group.script, *words(group, **{place: f"{folder}/{place}" for place in PLACES})]
    printed, error, settled = io.StringIO(), "", {}
    handler = logging.StreamHandler(printed)
    logging.getLogger(flags.__name__).addHandler(handler)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            args = parse_args()
            validate_args(args)
        names = {name for row in flags.ROWS for name in row.becomes}
        settled = {name: str(getattr(args, name)) for name in sorted(names) if hasattr(args, name)}
    except (AssertionError, ValueError, RuntimeError) as exception:
        error = f"{type(exception).__name__}: {exception}"
    except SystemExit:
        error = printed.getvalue().strip().splitlines()[-1]
    finally:
        logging.getLogger(flags.__name__).removeHandler(handler)
    return {"error": error, "printed": printed.getvalue(), "settled": settled}


def main() -> None:
    """Entry point."""
    sys.path.insert(0, sys.argv[1])
    import mindspeed_ms.patch  # noqa: F401
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    known = sorted(o.removeprefix("--") for action in parser._actions for o in action.option_strings)
    with tempfile.TemporaryDirectory() as folder:
        groups = {name: validated(group, folder) for name, group in ALL_GROUPS.items()}
    print(json.dumps({"parser": known, "groups": groups}))


if __name__ == "__main__":
    main()
