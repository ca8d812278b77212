"""The NVFLARE example with clients that lose their state once, as after a restart.

python tests/integration/restarting_clients.py FOLDER --rounds 3
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from resfed_codec.integrations.nvflare import END, ClientDecoder


class RestartingDecoder(ClientDecoder):
    """Drops the client's session before the second task."""

    def __init__(self) -> None:
        super().__init__()
        self._n_tasks = 0

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> Any:
        self._n_tasks += 1
        if self._n_tasks == 2:
            fl_ctx.set_prop(END, None, private=True, sticky=True)
        return super().process_dxo(dxo, shareable, fl_ctx)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "nvflare"))
    import job

    job.ClientDecoder = RestartingDecoder
    job.main()
