"""When may one callable stand in for another: every call that fits the original must fit the replacement."""

from inspect import Parameter, Signature

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def mismatch(original: Signature, replacement: Signature) -> str | None:
    """First way in which a call valid for ``original`` could fail on ``replacement``, or None.

    Names, positions and optionality of the original's parameters must be kept; the replacement may add
    parameters with defaults, and ``*args`` / ``**kwargs`` take whatever they can receive.
    """
    new = replacement.parameters
    new_positional = [p for p in new.values() if p.kind in _POSITIONAL]
    takes_args = any(p.kind is Parameter.VAR_POSITIONAL for p in new.values())
    takes_kwargs = any(p.kind is Parameter.VAR_KEYWORD for p in new.values())

    position = 0
    for old in original.parameters.values():
        if old.kind is Parameter.VAR_POSITIONAL:
            if not takes_args:
                return f"the original takes *{old.name}, the replacement does not"
        elif old.kind is Parameter.VAR_KEYWORD:
            if not takes_kwargs:
                return f"the original takes **{old.name}, the replacement does not"
        else:
            if old.kind in _POSITIONAL:
                at_position = new_positional[position] if position < len(new_positional) else None
                position += 1
                if at_position is None and not takes_args:
                    return f"parameter {old.name!r} (number {position}) is missing"
                if at_position is not None and at_position.name != old.name:
                    if old.kind is Parameter.POSITIONAL_ONLY:
                        continue
                    return f"parameter {position} is {at_position.name!r}, the original has {old.name!r}"
            named = new.get(old.name)
            if old.kind in _BY_NAME and (named is None or named.kind not in _BY_NAME) and not takes_kwargs:
                return f"parameter {old.name!r} cannot be passed by name"
            if (
                named is not None
                and old.default is not Parameter.empty
                and named.kind in (*_POSITIONAL, Parameter.KEYWORD_ONLY)
                and named.default is Parameter.empty
            ):
                return f"parameter {old.name!r} is optional in the original, required in the replacement"

    for added in new.values():
        required = added.default is Parameter.empty
        variadic = added.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if required and not variadic and added.name not in original.parameters:
            return f"the replacement requires {added.name!r}, which the original does not have"
    return None
