"""Runs the example app in a Python that has MONAI Label, as its server does: see test_monai_label_example.

Arguments: the app's folder, the studies' folder, a JSON list of requests, the Python that has medcam. Prints a JSON list of answers.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys

logging.disable(logging.CRITICAL)
app_folder, studies, requests, python, kept = sys.argv[1:]
sys.path.insert(0, app_folder)

from main import MyApp  # noqa: E402
from monailabel.interfaces.exception import MONAILabelException  # noqa: E402

app = MyApp(app_folder, studies, {"model": "demo-mri", "python": python, "heatmaps": f"{kept}/heatmaps"})
answers = []
for n, request in enumerate(json.loads(requests)):
    try:
        answer = app.infer({"model": "heatmap", "device": "cpu", **request})
    except MONAILabelException as error:
        answers.append({"error": str(error), "kind": type(error).__name__})
        continue
    shutil.copy(answer["file"], f"{kept}/{n}.nii.gz")
    answers.append({"params": answer["params"], "info": app.info()["models"]["heatmap"]})
sys.__stdout__.write("\n" + json.dumps(answers, default=str))
