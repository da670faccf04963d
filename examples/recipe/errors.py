"""The one exception that the recipe raises for what its user can put right."""


class RecipeError(Exception):
    """Wrong flags, data or checkpoint: one sentence saying what is wrong, where, and what to do.

    `examples/pretrain_gpt.py` prints it without a traceback and ends with exit code 1.
    """
