"""What CodecGrid and CodecMod say in Flower's log: the rounds, and what is done in vain."""

from __future__ import annotations

from logging import ERROR, INFO, WARNING

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore import log

from resfed_codec.integrations._ends import HELD, REQUEST, Parcel, ServerEnd
from resfed_codec.integrations._flower_records import (
    PARCEL_STYPE,
    STATE,
    WARNED,
    model_of,
    models_in,
)
from resfed_codec.integrations._setup import Model

_NO_MOD = (
    "a ClientApp without CodecMod cannot read what CodecGrid sends, and replies uncompressed; give"
    " it ClientApp(mods=[codec_mod])"
)

_UNREAD = (
    "the ClientApp reads a model that is still encoded: it has no CodecMod, or a mod that clips,"
    " adds noise or reads models comes before it: ClientApp(mods=[codec_mod, ...])"
)


class Notices:
    """What a CodecGrid counts of models that travel uncompressed, and what it logs.

    Attributes:
        end: The grid's end.
        plain: Messages and bytes of such models.
    """

    def __init__(self, end: ServerEnd) -> None:
        self.end = end
        self._warned: set[str] = set()
        self.reset()

    def reset(self) -> None:
        self.plain = {"plain_messages": 0, "plain_bytes": 0}

    def log_round(self) -> None:
        text = self.end.end_round()
        if text:
            log(INFO, "resfed_codec: %s", text)

    def _warn(self, cause: str, text: str, *args: object) -> None:
        """Log a warning, once for each cause."""
        if cause not in self._warned:
            self._warned.add(cause)
            log(WARNING, f"resfed_codec: {text}", *args)

    def name_of_model(self, content: RecordDict, what: str) -> str:
        """The name of the model, if there is exactly one; warns if there are several."""
        names = list(models_in(content))
        if len(names) > 1:
            self._warn(
                f"{what}: several",
                "%s has %d ArrayRecords (%s), which are sent uncompressed: the codec encodes one",
                *(what, len(names), ", ".join(map(repr, names))),
            )
        return names[0] if len(names) == 1 else ""

    def count_plain(self, content: RecordDict) -> None:
        records = models_in(content).values()
        self.plain["plain_messages"] += len(records) > 0
        self.plain["plain_bytes"] += sum(len(a.data) for r in records for a in r.values())

    def warn_of_layout(self, what: str, model: Model) -> None:
        self._warn(
            f"{what}: layout",
            "%s has another layout than the first model and is sent uncompressed: %s",
            *(what, self.end.difference(model)),
        )

    def warn_of_change(self, model: Model) -> None:
        text = self.end.difference(model)
        self._warn(
            f"change: {text}",
            "the model has changed, so every node gets it whole, once: %s",
            text,
        )

    def explained(self, error: Error, node_id: int) -> Error:
        """The error of a node, with its cause if that is a forgotten CodecMod, or one too late."""
        reason = error.reason or ""
        looks_for = reason.partition("<class 'KeyError'>:<'")[2].removesuffix("'>")
        is_unread = PARCEL_STYPE in reason or self.end.is_tensor(looks_for.strip("'\""))
        if self.end.is_introduced(node_id) or not is_unread:
            return error
        if "unread" not in self._warned:
            self._warned.add("unread")
            log(ERROR, "resfed_codec: node %d: %s: %s", node_id, reason, _UNREAD)
        return Error(error.code, f"{reason} (resfed_codec: {_UNREAD})")

    def check_reply(self, node_id: int, content: RecordDict, parcel: Parcel) -> None:
        """Warn of models that come uncompressed, or go so without need."""
        if not parcel:
            self._warn(
                "no CodecMod", "node %d does not answer as CodecMod does: %s", node_id, _NO_MOD
            )
        elif REQUEST in parcel and self.end.shared_initial:
            if not self.end.is_introduced(node_id):
                self._warn(
                    "shared_initial",
                    "shared_initial=True, but node %d does not hold the first model, so that is"
                    " sent to it: its ClientApp needs CodecMod(initial), with an initial that makes"
                    " the server's model, bit for bit",
                    node_id,
                )
        elif HELD in parcel:
            name = self.name_of_model(content, "a reply")
            if name:
                self.warn_of_layout("a reply", model_of(models_in(content)[name]))
        self.count_plain(content)


_warned_of_no_grid = False


def warn_of_no_grid(message: Message, context: Context) -> None:
    """Warn of a model that came uncompressed, once in a process and once for a node.

    Flower runs a ClientApp in many processes, one after the other. After a message of a CodecGrid
    that one warns itself.
    """
    global _warned_of_no_grid
    seen = any(name in context.state.config_records for name in (STATE, WARNED))
    if _warned_of_no_grid or seen or not models_in(message.content):
        return
    _warned_of_no_grid = True
    context.state[WARNED] = ConfigRecord({"no CodecGrid": True})
    log(
        WARNING,
        "resfed_codec: a model came uncompressed, so the reply is too: either the ServerApp has no"
        " CodecGrid, as in strategy.start(grid=CodecGrid(grid), ...), or its log says why",
    )
