"""The client: trains each received model on its own images."""

from __future__ import annotations

import nvflare.client as flare
import task

N_CLIENTS = 2


def main() -> None:
    flare.init()
    partition = int(flare.get_site_name().removeprefix("site-")) - 1
    images, labels, test_images, test_labels = task.load_data(partition, N_CLIENTS)
    while flare.is_running():
        model = flare.receive()
        seed = 1000 * (model.current_round + 1) + partition
        local = task.train(model.params, images, labels, seed)
        flare.send(
            flare.FLModel(
                params=local,
                metrics={"accuracy": task.accuracy(model.params, test_images, test_labels)},
                meta={"NUM_STEPS_CURRENT_ROUND": len(labels)},
            )
        )


if __name__ == "__main__":
    main()
