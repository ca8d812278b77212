"""What a server's session holds, and its saved form. server.py has the protocol."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from resfed_codec.errors import CodecError
from resfed_codec.locking import synchronized
from resfed_codec.session.base import ClientId, Session, client_name, client_tag
from resfed_codec.session.client_record import (
    ClientRecord,
    check_record,
    records_check,
    records_to_fields,
)
from resfed_codec.session.feedback_watch import (
    N_RECENT,
    N_WATCHED,
    ONE,
    FeedbackWatch,
)
from resfed_codec.session.traffic import number_of, round_text
from resfed_codec.stream.link import version_digest
from resfed_codec.stream.message import MAX_PAYLOADS, VersionId
from resfed_codec.stream.schema import (
    BITS64,
    BYTES,
    NUMBER,
    TensorChecks,
    checked_fields,
    integer,
    list_of,
    mapping_of,
    optional,
    require,
    tuple_of,
)
from resfed_codec.stream.versions import (
    Feedback,
    Model,
    ParsedPayload,
    Version,
    keep_newest,
    model_of,
)
from resfed_codec.tensors.layout import StateT

logger = logging.getLogger("resfed_codec")


class ServerState(NamedTuple):
    """All that changes in a server's session; calls replace it as a whole.

    Only ``clients`` changes in place: one assignment replaces one client's record.

    Attributes:
        current: The newest global version; the initial one if each client has its own downlink.
        versions: Global versions that uplinks may build on, by number.
        chain: The payload that makes each version, by the version's number.
        digests: Digests of the versions that a client can be brought up from, by number.
        clients: What the server knows of each client.
        target: The newest global model as given to ``update``, if each client has its own downlink.
        target_number: The number of ``target``.
        feedback: What downlinks have left out; the call that replaces the state updates its arrays
            in place, in the same step.
        watch: While it may turn out whether downlinks need feedback.
    """

    current: Version
    versions: dict[int, Version]
    chain: dict[int, bytes]
    digests: dict[int, int]
    clients: dict[ClientId, ClientRecord]
    target: Model | None = None
    target_number: int = 0
    feedback: Feedback | None = None
    watch: FeedbackWatch | None = None

    def after(self, version: Version, payload: bytes, history: int, n_bytes: int) -> ServerState:
        """The state with a new global version, ``history`` versions and ``n_bytes`` of payloads."""
        number = version.number
        chain = {**self.chain, number: payload}
        surplus = sum(map(len, chain.values())) - n_bytes
        oldest = min(chain)
        while oldest < number and (surplus > 0 or len(chain) > MAX_PAYLOADS):
            surplus -= len(chain.pop(oldest))
            oldest += 1
        digests = {**self.digests, number: version.digest}
        return self._replace(
            current=version,
            versions=keep_newest({**self.versions, number: version}, history),
            chain=chain,
            digests={n: digest for n, digest in digests.items() if n >= oldest - 1},
        )

    def chain_since(self, known: VersionId) -> list[bytes] | None:
        """The payloads after a version; None if it is unknown or one of them has been dropped."""
        if self.digests.get(known.version) != known.digest:
            return None
        return [self.chain[n] for n in range(known.version + 1, self.current.number + 1)]


class ServerBase(Session[StateT]):
    """Base of ServerSession: what it holds and how that is saved."""

    _state: ServerState
    _downlink: Any
    _logs_rounds = True
    """False if an integration does."""

    @property
    def version(self) -> int:
        """Number of global models given to :meth:`update`."""
        state = self._state
        return state.current.number if self._broadcast else state.target_number

    def __repr__(self) -> str:
        n_clients = len(self._state.clients)
        return self._repr(f"global model {self.version}, {number_of(n_clients, 'client')}")

    @property
    @synchronized
    def state(self) -> StateT:
        """A copy of the global model, as all clients recover it.

        If each client has its own downlink, it is the model given to :meth:`update`.
        """
        target = self._state.target
        model = model_of(self._state.current) if target is None else target
        state: StateT = self._layout.state_of(self._layout.copy_of(model))
        return state

    @property
    def error_feedback(self) -> bool:
        """Whether downlinks have error feedback now.

        Unless the configuration says, it is on to begin with, if the downlink's predictor does not
        read the clients' models. It ends for good once the models given to :meth:`update` contain
        what downlinks had left out: then the server keeps an exact model, and the next residual
        makes up for it. That is logged, and part of the saved state.
        """
        return self._state.feedback is not None

    @property
    @synchronized
    def clients(self) -> list[ClientId]:
        """The clients that :meth:`send` or :meth:`receive` has been called for."""
        return list(self._state.clients)

    @synchronized
    def forget(self, client_id: ClientId) -> None:
        """Drop what the session keeps of a client; if it comes back, it gets a keyframe.

        Args:
            client_id: The client; an unknown client is not an error.

        Raises:
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        self._state.clients.pop(client_name(client_id), None)

    @synchronized
    def memory(self) -> dict[str, int]:
        """Bytes held, by purpose; docs/guide.md says what to expect.

        Returns:
            "global": models that all clients share; "clients": models kept for single clients;
            "payloads": payloads and keyframes kept for sending; "feedback": what payloads have left
            out, and in the first rounds the last model given to :meth:`update`. Arrays that
            versions share count once.
        """
        state = self._state
        shared = _sizes(state.target)
        for version in [*state.versions.values(), self._initial]:
            for member in version.lineage(self._keep_down):
                shared |= _sizes(member.model)
        own: dict[int, int] = {}
        for client in state.clients.values():
            for version in [*client.uplinks.values(), *client.downlinks.values()]:
                for member in version.lineage(max(self._keep_down, self._keep_up)):
                    own |= _sizes(member.model)
        return {
            "global": sum(shared.values()),
            "clients": sum(size for array, size in own.items() if array not in shared),
            "payloads": sum(map(len, state.chain.values())) + self._downlink.cached_bytes,
            "feedback": sum(f.nbytes for f in state.feedback or [] if f is not None)
            + sum(_sizes(state.watch and state.watch.last).values()),
        }

    def _log_round(self, number: int) -> None:
        """Log what was sent and received while global model ``number`` was the newest."""
        text = self._end_round(number) if self._logs_rounds else ""
        if text:
            logger.info("%s", text)

    def _end_round(self, number: int) -> str:
        """What was sent and received since the last call; empty if nothing was."""
        counts = self._traffic.end_round()
        if not counts["uncompressed_bytes"]:
            return ""
        feedback = {"up": self._feeds_back_up, "down": self._state.feedback is not None}
        ways = " and ".join(way for way, is_on in feedback.items() if is_on)
        return f"global model {number}: {round_text(counts)}, feedback {ways or 'off'}"

    # ---- records of clients

    def _client(self, client_id: ClientId) -> ClientRecord:
        """The client's record; a new one is not stored yet."""
        name = client_name(client_id)
        known = self._state.clients.get(name)
        return known or self._new_record(client_tag(name, self._run_digest))

    def _new_record(self, tag: int) -> ClientRecord:
        first = self._first_uplink()
        uplinks = {} if first is None else {0: first}
        downlinks = {}
        if not self._broadcast:
            downlinks = {0: Version(0, self._down_root, self._initial.model)}
        return ClientRecord(tag, VersionId(0, self._down_root), uplinks, downlinks)

    def _store(self, client_id: ClientId, client: ClientRecord) -> None:
        self._state.clients[client_name(client_id)] = client

    # ---- saved form

    def _depends(self) -> dict[str, Any]:
        return {
            **super()._depends(),
            **self._downlink_encoder.depends(self._feedback_setting),
        }

    @property
    def _feedback_setting(self) -> bool | None:
        """The configuration's; downlinks that read clients' models have none."""
        return self._downlink_encoder.config.error_feedback if self._broadcast else False

    def _fields(self) -> dict[str, Any]:
        clients = records_to_fields(self._state.clients, self._new_record)
        return {**self._state._asdict(), "clients": clients}

    def _checked(self, saved: Any, tensors: TensorChecks) -> ServerState:
        setting = self._feedback_setting
        feedback = tensors.kept_feedback(self._downlink_encoder.roles, setting is not False)
        most = 1024 * ONE
        watch = tuple_of(
            lambda last, recent, n_shares: FeedbackWatch(last, tuple(recent), n_shares),
            last=optional(tensors.model),
            recent=list_of(integer(-most, most), at_most=N_RECENT),
            n_shares=integer(0, N_WATCHED),
        )
        fields = checked_fields(
            saved,
            {
                "current": tensors.version(),
                "versions": tensors.versions(at_most=self._history),
                "chain": mapping_of(NUMBER, BYTES),
                "digests": mapping_of(NUMBER, BITS64),
                "target": optional(tensors.model),
                "target_number": NUMBER,
                "feedback": optional(feedback) if setting is None else feedback,
                "watch": optional(watch),
                "clients": records_check(tensors, self._history, self._new_record),
            },
        )
        current, chain, digests = fields["current"], fields["chain"], fields["digests"]
        require(fields["versions"].get(current.number) is current, "versions")
        require(max(fields["versions"]) == current.number, "versions")
        first = current.number - len(chain)
        require(sorted(chain) == list(range(first + 1, current.number + 1)), "chain")
        require(len(chain) <= MAX_PAYLOADS, "chain")
        require(sorted(digests) == list(range(first, current.number + 1)), "digests")
        made = {n: version_digest(payload) for n, payload in chain.items()} | {
            current.number: current.digest
        }
        require(made.items() <= digests.items(), "digests")
        is_newer = fields["target_number"] > 0
        require((fields["target"] is not None) == is_newer, "target")
        require(not (self._broadcast and is_newer), "target_number")
        require(self._broadcast or current.number == 0, "current")
        watched = fields["watch"]
        require(watched is None or self._broadcast, "watch")
        if watched is not None:
            require((watched.last is None) == (current.number == 0), "watch")
            require(len(watched.recent) == min(watched.n_shares, N_RECENT), "watch")
            require(setting is not None or fields["feedback"] is not None, "watch")
        try:
            for payload in chain.values():
                ParsedPayload(payload, self._layout)
            for name, client in fields["clients"].items():
                require(client.tag == client_tag(name, self._run_digest), "tag")
                check_record(
                    client,
                    self._layout,
                    own_downlinks=not self._broadcast,
                    keeps_models=self._keep_up > 0,
                )
        except CodecError as error:
            raise ValueError(f"state_dict: {error}") from error
        return ServerState(**fields)


def _sizes(model: Model | None) -> dict[int, int]:
    """Bytes by array: versions share them."""
    return {id(array): array.nbytes for array in model or []}
