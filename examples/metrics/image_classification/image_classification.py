# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""Top-1 and top-5 accuracy and macro-F1 from ranked class indices. `evaluate.load` on this folder needs no network."""

# One import a line: `evaluate` looks for the imports of a metric script line by line.
import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score


_DESCRIPTION = (
    "Share of images whose class is the best guess (top-1), or among the five best guesses (top-5), and the mean of the "
    "classes' F1, in which a rare class counts as much as a frequent one."
)

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of int): for each image its best classes, best first; all of the same length.
    references (list of int): the true classes.

Returns:
    accuracy (float): top-1 accuracy in 0..1.
    macro_f1 (float): mean in 0..1 of the F1 of the best guesses, over the classes that are guessed or true ones.
    top5_accuracy (float): top-5 accuracy in 0..1, if five guesses an image are given.

Examples:
    >>> metric = evaluate.load("examples/metrics/image_classification")
    >>> metric.compute(predictions=[[2, 0, 1, 3, 4], [1, 2, 3, 4, 5]], references=[2, 5])
    {'accuracy': 0.5, 'macro_f1': 0.3333333333333333, 'top5_accuracy': 1.0}
"""


class ImageClassification(evaluate.Metric):
    """Top-1 and top-5 accuracy and macro-F1."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references):
        ranked, true = np.asarray(predictions), np.asarray(references)
        hits = ranked == true[:, None]
        results = {
            "accuracy": float(hits[:, 0].mean()),
            "macro_f1": float(f1_score(true, ranked[:, 0], average="macro")),
        }
        if hits.shape[1] >= 5:
            results["top5_accuracy"] = float(hits[:, :5].any(axis=1).mean())
        return results
