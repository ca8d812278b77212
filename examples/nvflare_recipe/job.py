"""Handwritten digits in NVFLARE with the codec, by a recipe: PyTorch, differences as results.

    python examples/nvflare_recipe/job.py FOLDER

Needs ``pip install 'resfed-codec[nvflare,torch]' scikit-learn``. FOLDER is the simulator's
workspace.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat, TransferType
from nvflare.recipe import SimEnv

from resfed_codec.integrations.nvflare import (
    ClientDecoder,
    ClientEncoder,
    ServerDecoder,
    ServerEncoder,
)

HERE = Path(__file__).parent


def make_recipe(n_rounds: int, dtype: str, *, codec: bool) -> FedAvgRecipe:
    recipe = FedAvgRecipe(
        name="digits",
        model={"class_path": "net.Net", "args": {"dtype": dtype}},
        min_clients=2,
        num_rounds=n_rounds,
        train_script=str(HERE / "client.py"),
        train_args=f"--dtype {dtype}",
        server_expected_format=ExchangeFormat.PYTORCH,
        params_transfer_type=TransferType.DIFF,
    )
    recipe.add_server_file(str(HERE / "net.py"))
    recipe.add_client_file(str(HERE / "net.py"))
    if codec:
        recipe.add_server_output_filter(ServerEncoder(), tasks=["train"])
        recipe.add_client_input_filter(ClientDecoder(), tasks=["train"])
        recipe.add_client_output_filter(ClientEncoder(), tasks=["train"])
        recipe.add_server_input_filter(ServerDecoder(), tasks=["train"])
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of the model, such as bfloat16")
    parser.add_argument("--plain", action="store_true", help="without the codec, to compare")
    args = parser.parse_args()
    recipe = make_recipe(args.rounds, args.dtype, codec=not args.plain)
    print(recipe.execute(SimEnv(num_clients=2, workspace_root=str(args.folder))).get_status())


if __name__ == "__main__":
    main()
