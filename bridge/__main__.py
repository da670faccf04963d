"""``python -m mindspeed_ms``: the command ``mindspeed-ms``."""

import sys

from mindspeed_ms.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
