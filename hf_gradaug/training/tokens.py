# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Keeps access tokens out of saved files."""

from typing import Any


class _HiddenToken(str):
    """A string that pickles to `None`, and is otherwise the same."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return type(None), ()

    def __copy__(self) -> "_HiddenToken":
        return self

    def __deepcopy__(self, memo: dict) -> "_HiddenToken":
        return self


class HiddenTokenMixin:
    """
    Keeps `hub_token` out of `training_args.bin`. The Trainer pickles its arguments to this file and pushes it. It masks the
    token in text only.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.hub_token is not None:
            self.args.hub_token = _HiddenToken(self.args.hub_token)
