# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Complete pushes to the Hub; a failed push names the missing files and the command that uploads them."""

import contextlib
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

# `HTTPError` is from the HTTP library that the client uses. It covers failed connections too.
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import CommitInfo
from torch.distributed.fsdp import StateDictType
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput
from transformers.utils import PushInProgress
from transformers.utils.hub import hf_api

from .tokens import HiddenTokenMixin


logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before the second and the third attempt. Only for requests that the client doesn't retry itself: making a
# repository or a branch, looking at a card, a commit.
_WAITS = (2, 8)
# Besides all errors of the server: a timeout, another commit at the same time, and too many requests.
_PASSING = {408, 409, 412, 429}


class HubPushError(RuntimeError):
    """
    A failed push to the Hub. The message states the reason and the commands that upload the missing files.

    Args:
        message (`str`):
            The message.

    Attributes:
        train_output (`~transformers.trainer_utils.TrainOutput`, *optional*):
            The return value of `train()`, if `train()` raised the error. The run is finished and the model is saved.
    """

    train_output: TrainOutput | None = None


@dataclass(frozen=True)
class _Upload:
    """A folder and its destination. Two are equal if the later one replaces the earlier one."""

    repo_id: str = field(compare=False)
    folder: str = field(compare=False)
    path_in_repo: str | None
    revision: str | None
    commit_message: str | None = field(compare=False)
    token: str | None = field(compare=False, repr=False)
    private: bool | None = field(compare=False)

    @property
    def left_out(self) -> list[str]:
        """Files that the Trainer leaves out of an output folder. Of a checkpoint, none."""
        return ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"] if self.path_in_repo is None else []

    @property
    def command(self) -> str:
        words = ["hf", "upload", self.repo_id, os.path.abspath(self.folder), self.path_in_repo or "."]
        for pattern in self.left_out:
            words += ["--exclude", pattern]
        if self.revision is not None:
            words += ["--revision", self.revision]
        # It makes the repository, if that is what failed.
        return shlex.join([*words, "--private"] if self.private else words)

    def send(self) -> CommitInfo:
        """Uploads what the Hub doesn't have yet."""
        return hf_api().upload_folder(
            repo_id=self.repo_id,
            folder_path=self.folder,
            path_in_repo=self.path_in_repo,
            commit_message=self.commit_message,
            token=self.token,
            revision=self.revision,
            ignore_patterns=self.left_out,
        )


class HubMixin(HiddenTokenMixin):
    """
    Makes the pushes of any Trainer complete: `class MyTrainer(HubMixin, SomeTrainer)`. [`GradAugTrainer`] includes it.

    - If the token can't write to the repository, or the repository is public in spite of `hub_private_repo`, the
      constructor raises an error. If the branch `hub_revision` is missing, the constructor creates it.
    - All files, the model card included, are on disk before a push begins.
    - Transient errors of the server or the connection are retried; only missing files are uploaded again.
    - A failed push in the background is logged as an error and retried at the end of `train()`. If files are still
      missing, `train()` raises [`HubPushError`]. The trained model is then in `output_dir`.
    - `push_to_hub` also uploads the missing files of earlier pushes. An error in the main process, which uploads, is
      raised in all processes. They wait for it at most `ddp_timeout` seconds. With `blocking=False`, the future's
      result raises it.
    - While one push is running, the next push is skipped, as in the Trainer. With `hub_always_push`, or if checkpoints
      are pushed and `save_total_limit` deletes some, training waits for the running push instead.

    Raises:
        [`HubPushError`]: If the repository can't be written to, or files are still missing after the retries.
        `ValueError`: If `hub_private_repo` is on and the repository is public, or FSDP doesn't save the full state dict.
    """

    def __init__(self, *args, **kwargs):
        self._missing_uploads: dict[_Upload, str] = {}  # with the reasons
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in the Trainer. An error in the main process is raised in all processes."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
            name = plugin.state_dict_type.name  # with which the Trainer saves no model
            raise ValueError(f"`fsdp_state_dict_type` must be FULL_STATE_DICT to push, but is {name}.")
        with self._fail_together():
            if self.is_world_process_zero():
                token = token or self.args.hub_token
                # Older versions of transformers don't take it.
                options = {} if private is None else {"private": private}
                self._make_repository(partial(super().init_hf_repo, token=token, **options), token)
                if self.args.hub_private_repo if private is None else private:
                    self._check_is_private(token)
        # Known in all processes, so that all of them come here, or none.
        (self.hub_model_id,) = broadcast_object_list([self.hub_model_id])

    def _make_repository(self, create: Callable[[], None], token: str | None) -> None:
        def make() -> None:
            create()
            hf_api().auth_check(self.hub_model_id, token=token, write=True)
            revision = self.args.hub_revision
            if revision is not None:
                try:
                    hf_api().repo_info(self.hub_model_id, revision=revision, token=token)
                except RevisionNotFoundError:
                    hf_api().create_branch(self.hub_model_id, branch=revision, token=token, exist_ok=True)

        try:
            _persist(make)
        except Exception as error:
            self.hub_model_id = None
            message = (
                f"The repository '{self._repository_name()}' can't be made or written to: {_describe(error, token)}"
            )
            if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
                message += (
                    f"\nThe token was not accepted by {hf_api().endpoint}. Log in with `hf auth login`, or give a "
                    "token with write permission as `hub_token` or in HF_TOKEN."
                )
            raise HubPushError(message) from None  # the original may show the token

    def _check_is_private(self, token: str | None) -> None:
        # The Hub ignores the wish if the repository exists.
        name = self.hub_model_id
        if not _persist(lambda: hf_api().repo_info(name, token=token)).private:
            self.hub_model_id = None  # the next push checks it again
            raise ValueError(
                f"`hub_private_repo` must be off for '{name}', which exists and is public, but is on. Make the "
                "repository private, name another by `hub_model_id`, or leave it out."
            )

    def _save_beside_weights(self, folder: str) -> None:
        """Saves further files to the output folder before a push. Nothing by default."""

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if not self.args.push_to_hub:
            return output
        self.save_model(_internal_call=True)
        try:
            with self._fail_together():
                self._complete(dict.fromkeys(self._missing_uploads))
        except HubPushError as error:
            error.train_output = output
            raise
        return output

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Saves the model and its card, and uploads them with the missing files of earlier pushes.

        Args:
            commit_message, blocking, token, revision, private, **kwargs:
                The Trainer's arguments. `kwargs` go to `create_model_card`.

        Returns:
            `CommitInfo`, or with `blocking=False` a `Future` of it. `None` in other processes than the main one.

        Raises:
            [`HubPushError`]: In all processes, if something is still missing after several attempts.
        """
        if self.hub_model_id is None:
            with self._fail_together():  # saved before the first request, which makes the repository
                self.save_model(_internal_call=True)
                self.create_model_card(**kwargs)
            try:
                self.init_hf_repo(token=token, private=private)
            except HubPushError as error:
                upload = self._get_upload(commit_message, revision=revision, token=token, private=private)
                self._missing_uploads[upload] = str(error)
                self._raise_missing()
        with self._fail_together():
            job = super().push_to_hub(
                commit_message=commit_message, blocking=False, token=token, revision=revision, **kwargs
            )
            if job is None:  # not the main process
                return None
            upload = self._get_upload(commit_message, revision=revision, token=token)
            missing = [other for other in self._missing_uploads if other != upload]
            jobs = {**dict.fromkeys(missing), upload: job}
            if blocking:
                return self._complete(jobs)
            return self._complete_in_background(jobs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        pushes_checkpoints = strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push and not (pushes_checkpoints and self.args.save_total_limit is not None):
                return  # left out, as the Trainer does it
            # The files that it reads are replaced in the output folder next, and an old checkpoint is deleted.
            self._finish_current_push()
        self._save_beside_weights(self.args.output_dir)
        self.create_model_card(model_name=self._repository_name().split("/")[-1])
        super()._push_from_checkpoint(checkpoint_folder)
        message = f"Training in progress, step {self.state.global_step}"
        uploads = [self._get_upload(message)]
        if pushes_checkpoints:
            folder = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            uploads.append(self._get_upload(f"{message}, checkpoint", checkpoint_folder, folder))
        self._complete_in_background(dict(zip(uploads, self.push_in_progress.jobs, strict=True)))

    def _repository_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def _get_upload(
        self,
        commit_message: str | None,
        folder: str | None = None,
        path_in_repo: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        private: bool | None = None,
    ) -> _Upload:
        return _Upload(
            repo_id=self._repository_name(),
            folder=folder or self.args.output_dir,
            path_in_repo=path_in_repo,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            private=self.args.hub_private_repo if private is None else private,
        )

    def _complete_in_background(self, jobs: dict[_Upload, Future]) -> Future[CommitInfo]:
        def complete() -> CommitInfo | None:
            try:
                return self._complete(jobs)
            except HubPushError as error:
                logger.error(error)
                raise

        # The API's background jobs run one by one: this job starts when the jobs that it checks are done.
        future = hf_api().run_as_future(complete)
        if self.push_in_progress is None:
            self.push_in_progress = PushInProgress([])
        self.push_in_progress.jobs.append(future)
        return future

    def _complete(self, jobs: dict[_Upload, Future | None]) -> CommitInfo | None:
        """Follows jobs that fail, and uploads without a job, by attempts of its own. Returns the last commit."""
        commit = None
        for upload, job in jobs.items():
            self._missing_uploads.pop(upload, None)  # an earlier one, whose folder may be another
            try:
                commit = _persist(upload.send if job is None else job.result, upload.send)
            except Exception as error:
                self._missing_uploads[upload] = _describe(error, upload.token)
        self._raise_missing()
        return commit

    def _raise_missing(self) -> None:
        if self._missing_uploads:
            parts = []
            for upload, reason in self._missing_uploads.items():
                parts.append(f"Pushing '{upload.folder}' to '{upload.repo_id}' failed. {reason}")
                if os.path.isdir(upload.folder):
                    parts.append(
                        f"The folder is complete. This command uploads what is missing:\n    {upload.command}"
                    )
            raise HubPushError("\n".join(parts))

    @contextlib.contextmanager
    def _fail_together(self) -> Iterator[None]:
        """Raises an error of the main process in all processes, so that none waits forever."""
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        (message,) = broadcast_object_list([None if failure is None else str(failure)])
        if failure is not None:
            raise failure
        if message is not None:
            raise HubPushError(f"The main process failed: {message}")


def _persist(attempt: Callable[[], T], then: Callable[[], T] | None = None) -> T:
    """The result of an attempt. After transient errors it is repeated, by `then` if given."""
    for wait in _WAITS:
        try:
            return attempt()
        except Exception as error:
            if not _may_pass(error):
                raise
            logger.warning(f"A request to the Hub failed and is retried in {wait} s: {type(error).__name__}.")
        time.sleep(wait)
        attempt = then or attempt
    return attempt()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in _PASSING
    # No JSON where the Hub answers with some: the page of a server in between.
    return isinstance(error, (HTTPError, json.JSONDecodeError))


def _describe(error: Exception, token: str | None) -> str:
    # The client wraps what went wrong with a large file; an error of the HTTP library has said it all.
    causes = [error] if error.__cause__ is None or isinstance(error, HTTPError) else [error, error.__cause__]
    text = " ".join(" ".join(f"{type(cause).__name__}: {cause}" for cause in causes).split())
    # An HTTP library shows the headers that it refuses.
    return text.replace(token.strip(), "<token>") if token and token.strip() else text
