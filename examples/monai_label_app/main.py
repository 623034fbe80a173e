"""A MONAI Label app that explains a network: its clients show where the network looked, as bands of relevance.

    monailabel start_server --app examples/monai_label_app --studies FOLDER --conf model demo-mri --conf python /path/to/medcam/python

`docs/how-to-monai-label.md` says what it does. Research use only, not for diagnosis.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lib.heatmap import HeatmapInfer
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask


class MyApp(MONAILabelApp):
    """One task, `heatmap`. What a client can choose, such as the method, stands in the task's own configuration."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(
            app_dir=app_dir, studies=studies, conf=conf, name="medcam", version="1",
            description="Where a network looked. Research use only, not for diagnosis.",
        )  # fmt: skip

    def init_infers(self) -> dict[str, InferTask]:
        """Return the tasks by their names."""
        heatmaps = Path(self.conf.get("heatmaps") or Path(self.app_dir) / "heatmaps")
        task = HeatmapInfer(
            self.conf.get("model", "demo-mri"), heatmaps, python=self.conf.get("python", sys.executable)
        )
        return {"heatmap": task}
