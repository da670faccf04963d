"""A simulated CANN: MindSpore's own Ascend backend runs over it on a CPU. See README.md."""
