# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
Trains a tiny ConvNeXt on a stream of shards, in processes started by `torchrun`, and saves what the tests compare.

    torchrun --nproc_per_node 2 tests/helpers/scripts/train_stream.py OUTPUT SHARDS STEPS [CHECKPOINT]
"""

import json
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.streams import RecordingTrainer, stream_trainer  # noqa: E402
from helpers.tiny import state_of  # noqa: E402


def main(output: str, shards: str, steps: str, checkpoint: str | None = None) -> None:
    torch.set_num_threads(1)
    args = {"max_steps": int(steps), "save_steps": 6, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    trainer = stream_trainer(output, shards, cls=RecordingTrainer, **args)
    trainer.train(resume_from_checkpoint=checkpoint)
    rank = trainer.args.process_index
    (Path(output) / f"seen_{rank}.json").write_text(json.dumps(trainer.seen))
    if rank == 0:
        torch.save(state_of(trainer.model), Path(output) / "state.pt")
    torch.distributed.destroy_process_group()  # gloo aborts at exit otherwise


if __name__ == "__main__":
    main(*sys.argv[1:])
