"""First import of a run through the bridge: MindSpore as well, so that forks need not import it."""

import mindspore  # noqa: F401
import torch  # noqa: F401 - with MINDSPEED_MS_AUTOLOAD=1 it brings the bridge
