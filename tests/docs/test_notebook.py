# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""The notebook runs from top to bottom, learns the digits, and shows both pictures."""

import nbformat
import pytest
from helpers.images import ROOT
from nbclient import NotebookClient


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    accuracy = next(
        float(data["text/plain"].split("(")[-1].rstrip(")")) for data in shown if "0." in data["text/plain"]
    )
    assert accuracy > 0.9
    assert not [output for output in outputs if output.get("name") == "stderr" and "UserWarning" in output["text"]]
