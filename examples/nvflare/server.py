"""The server: federated averaging that stores its last model in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import task
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg


class DigitsFedAvg(FedAvg):
    """Federated averaging that starts from task.py's first model."""

    def load_model(self) -> FLModel:
        return FLModel(params=task.first_model())

    def save_model(self, model: FLModel) -> None:
        folder = Path(self.engine.get_workspace().get_result_root(self.fl_ctx.get_job_id()))
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "model.npz", **model.params)
