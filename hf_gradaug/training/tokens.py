# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Keeps access tokens out of saved files."""

from typing import Any


class _HiddenToken(str):
    """A string that pickles to `None`."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return type(None), ()

    def __copy__(self) -> "_HiddenToken":
        return self

    def __deepcopy__(self, memo: dict) -> "_HiddenToken":
        return self


def hide_from_pickle(token: str | None) -> str | None:
    """
    A token that pickles to `None` and is otherwise the same string.

    The Trainer pickles its arguments into `training_args.bin`, which is pushed to the Hub. It masks the token in text
    only.

    Args:
        token (`str`, *optional*):
            A token of the Hub.
    """
    return None if token is None else _HiddenToken(token)
