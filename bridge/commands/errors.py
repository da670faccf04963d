"""What a command says when its user can put something right."""


class CommandError(Exception):
    """One sentence; ``mindspeed-ms`` prints it and ends with status 2."""
