"""The client: trains each received model on its own images. NVFLARE sends the difference."""

from __future__ import annotations

import argparse

import nvflare.client as flare
import torch

import net as task


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    flare.init()
    partition = int(flare.get_site_name().removeprefix("site-")) - 1
    images, labels, test_images, test_labels = task.load_data(partition, args.clients)
    net = task.Net(args.dtype)
    while flare.is_running():
        model = flare.receive()
        net.load_state_dict(model.params)
        accuracy = task.accuracy(net, test_images, test_labels)
        task.train(net, images, labels, 1000 * (model.current_round + 1) + partition)
        flare.send(
            flare.FLModel(
                params={name: tensor.clone() for name, tensor in net.state_dict().items()},
                metrics={"accuracy": accuracy},
                meta={"NUM_STEPS_CURRENT_ROUND": len(labels)},
            )
        )


if __name__ == "__main__":
    main()
