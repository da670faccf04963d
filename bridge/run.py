"""``torchrun … -m mindspeed_ms.run SCRIPT …``: the command ``run``, by a name that launchers start."""

import sys

from mindspeed_ms.commands.run import main

if __name__ == "__main__":
    sys.exit(main())
