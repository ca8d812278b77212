"""The Aggregator on a device, compared with the CPU's: same means, same errors.

Every call goes to both (gpu.py). From 4,096 lossless elements on, the device decodes them.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_codec import DTYPES, SHAPES
from test_device_lossless import padded

import resfed_codec as rfc
from device_cases import bytes_of, random_pair, to_device
from gpu import LIBRARIES, Gpu, Twin, needs_cuda, needs_emulator
from models import FLOATS, INTEGERS, State, assert_same, cnn_pair, options, pairs
from published_rules import moved
from resfed_codec import _native
from resfed_codec._native import DType, Role, Tensors
from resfed_codec.reference.frame import read_frame

pytestmark = [pytest.mark.cuda, needs_cuda]

NEVER = 2**64 - 1
WEIGHTS = [1, 0, 0.75, 1 / 3, 300.0, 2.0**20, 2.0**-40]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu("other", monkeypatch)


def twin(gpu: Gpu, reference: Any) -> Any:
    return Twin(gpu, rfc.Aggregator(reference), rfc.Aggregator(gpu.state(reference)))


def attempt(mean: Any, model: Any, weight: float = 1.0) -> None:
    """Add a payload or a model; both aggregators may refuse it, with the same error."""
    add = mean.add if isinstance(model, bytes) else mean.add_state
    with contextlib.suppress(ValueError, rfc.CodecError):
        add(model, weight)


def assert_same_mean(mean: Any) -> None:
    assert mean.total_weight >= 0
    if mean.count > 0:
        mean.result()


# ---- payloads and models


@settings(max_examples=30)
@given(
    pairs(FLOATS + INTEGERS).filter(lambda pair: bool(pair[0])),
    st.lists(
        st.tuples(
            st.sampled_from(["payload", "model", "back"]),
            st.sampled_from(WEIGHTS),
            options(),
            st.sampled_from([(), ("*",), ("padding",)]),
            st.sampled_from([None, (), ("*",)]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_any_model(gpu: Gpu, pair: tuple[State, State], steps: list[Any], pad: bool) -> None:
    state, reference = padded(pair) if pad else pair
    exclusions = [(), ("*",)] if not pad else [(), ("*",), ("padding",)]
    mean = twin(gpu, reference)
    for kind, weight, config, exclude, dense in steps:
        exclude = exclude if exclude in exclusions else ()
        if kind == "payload":
            model = rfc.encode(state, reference, exclude=exclude, dense=dense, **config)
            attempt(mean, model, weight)
        else:
            attempt(mean, state if kind == "model" else reference, weight)
    assert_same_mean(mean)


@pytest.mark.parametrize("exclude", [(), ("a",), ("a", "b", "d", "f"), ("*",)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(gpu: Gpu, dtype: Any, exclude: tuple[str, ...]) -> None:
    """With tensors that a payload excludes, and vectors that it codes as matrices."""
    state, reference = (
        {name: np.asarray(value) for name, value in model.items()}
        for model in random_pair(SHAPES, dtype)
    )
    mean = twin(gpu, reference)
    for sparsity, dense in ((0.99, None), (0.5, ("c",)), (0.0, ("b",))):
        kept = tuple(name for name in dense or () if name not in exclude and exclude != ("*",))
        attempt(mean, rfc.encode(state, reference, sparsity=sparsity, exclude=exclude, dense=kept))
    mean.add_state(state, 0.3)
    assert mean.count == 4
    mean.result()


@pytest.mark.parametrize("dtype", [*INTEGERS])
def test_integers(gpu: Gpu, dtype: str, rng: np.random.Generator) -> None:
    n = 5000
    models = []
    for _ in range(4):
        values = rng.integers(0, 256, n * np.dtype(dtype).itemsize, np.uint8)
        models.append({"n": values % 2 == 0 if dtype == "bool" else values.view(dtype)})
    reference, *others = models
    few = {"n": reference["n"][:100]}
    for base, states in ((reference, others), (few, [{"n": m["n"][:100]} for m in others])):
        mean = twin(gpu, base)
        for weight, state in zip((1, 2.5, 2.0**-40), states, strict=True):
            mean.add(rfc.encode(state, base), weight)
            mean.add_state(state, 3 * weight)
        mean.result()


def test_parts_of_complex_numbers() -> None:
    """Native code, for only torch's complex tensors lie on a device: floats that are lossless."""
    rng = np.random.default_rng(4)
    base, other = rng.standard_normal((2, 50), np.float32)
    columns = {"roles": [Role.LOSSLESS], "dtypes": [DType.FLOAT32], "n_elems": [50]}
    on_host = _native.Aggregator(Tensors(reference=[base], **columns), [False], [True])
    on_host.add(on_host.prepare_state([other], 0.7))
    expected = np.empty_like(base)
    on_host.result([expected], 0.8)
    on_device = _native.DeviceAggregator(
        Tensors(reference=[to_device(base)], **columns), [False], 0, 0
    )
    on_device.add(on_device.prepare_state([to_device(other)], 0.7, 0), None, None, 0)
    mean = to_device(np.zeros_like(base))
    on_device.result([mean], 0.8, 0)
    assert bytes_of([mean]) == bytes_of([expected])
    assert not (expected == base).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_real_updates(gpu: Gpu, dtype: Any, snapshots: dict[str, State]) -> None:
    def part(name: str) -> State:
        floats = {key: value for key, value in snapshots[name].items() if value.ndim > 0}
        return {key: value[:100].astype(dtype) for key, value in floats.items()}

    reference = part("g6")
    mean = twin(gpu, reference)
    for weight, name in enumerate(("l0_7", "g7", "g5"), start=100):
        mean.add(rfc.encode(part(name), reference, sparsity=0.9), weight)
    mean.add_state(part("g8"), 7)
    mean.result()
    mean.reset(part("g7"))
    mean.add_state(reference)
    mean.result()


def test_models_without_elements(gpu: Gpu) -> None:
    for model in ({"a": np.zeros((0, 4), np.float32)}, {"n": np.zeros(0, np.int8)}):
        mean = twin(gpu, model)
        mean.add(rfc.encode(model, model))
        mean.add_state(model)
        mean.result()


def test_elements_that_are_not_finite_and_do_not_change(gpu: Gpu) -> None:
    reference = {"a": np.array([[np.nan, np.inf, 1.0, -0.0]], np.float32)}
    state = {"a": np.array([[np.nan, np.inf, 2.0, -0.0]], np.float32)}
    mean = twin(gpu, reference)
    mean.add_state(state)
    assert_same(mean.result(), state)


# ---- sums of any size


def test_floats_beyond_128_bits(gpu: Gpu) -> None:
    """Sums are carried over, and what cancels out leaves the reference, zeros of both signs."""
    values = [2.0**44] * 40 + [2.0**-20, -3e10] + [-(2.0**44)] * 40
    reference = {
        "a": np.array([0, -0.0, 1, -0.0], np.float32),
        "b": np.array([[-0.0, 5.0]], np.float16),
    }
    mean = twin(gpu, reference)
    for n, value in enumerate(values):
        state = {name: array.copy() for name, array in reference.items()}
        state["a"][0] = value
        if n not in (40, 41):
            state["a"][1] = value
        if n % 7 == 0:
            state["b"][0, 1] = n
        mean.add_state(state, 1 if n % 3 else 0.5)
        if n % 20 == 0:
            mean.result()
    result = mean.result()["a"]
    assert result[0] != 0
    assert result[1] == 0
    assert np.signbit(result[1])


def test_integers_beyond_128_bits(gpu: Gpu, rng: np.random.Generator) -> None:
    reference = {"i": np.array([-1, 0, 1]), "f": np.zeros(3, np.float32)}
    mean = twin(gpu, reference)
    for n in range(60):
        value = rng.choice([2**63 - 1, -(2**63), 2**62 + 1, -7])
        state = {"i": np.array([-1, value, 2**63 - 1]), "f": np.full(3, n, np.float32)}
        mean.add_state(state, float(rng.choice([1, 2.0**20, 3.5, 2.0**-40])))
    mean.result()


@pytest.mark.parametrize("value", [2.0**45, -(2.0**45), np.inf, np.nan])
def test_what_is_too_large_is_refused(gpu: Gpu, value: float) -> None:
    """The tensor with the largest change is named, the first of several."""
    reference = {name: np.zeros((3, 40), np.float32) for name in "abc"}
    good = {name: array + 1 for name, array in reference.items()}
    bad = {name: array.copy() for name, array in reference.items()}
    bad["b"][1, 7] = value
    bad["c"][0, 1] = bad["b"][1, 7]
    if np.isnan(value):
        bad["c"].view(np.uint32)[0, 1] |= 1  # of another payload
    bad["a"][0, 0] = 2.0**46
    if np.isfinite(value):
        bad["a"][0, 0] = 1
    mean = twin(gpu, reference)
    mean.add_state(good, 2)
    before = mean.result()
    with pytest.raises(ValueError, match=r"^weight: the change of tensor 'b'"):
        mean.add_state(bad)
    with pytest.raises(rfc.PayloadError, match="the change of tensor 'b'"):
        mean.add(rfc.encode(bad, reference, exclude="*"))
    mean.add_state(bad, 0)
    assert (mean.count, mean.total_weight) == (1, 2.0)
    assert_same(mean.result(), before)


# ---- errors


def test_damage(gpu: Gpu, rng: np.random.Generator) -> None:
    """With valid checksums: the same errors as on the CPU, and nothing added."""
    state, reference = padded(cnn_pair(rng))
    payload = rfc.encode(state, reference, sparsity=0.5, exclude="fc.weight", dense="fc.bias")
    assert read_frame(payload).n_changed > 0
    mean = twin(gpu, reference)
    mean.add(payload)
    n_refused = 0
    for position in range(30, len(payload) - 4, len(payload) // 50):
        forged = bytearray(payload[:-4])
        forged[position] ^= 1 << position % 8
        forged += _native.crc32c(bytes(forged)).to_bytes(4, "little")
        count = mean.count
        attempt(mean, bytes(forged))
        n_refused += mean.count == count
    assert n_refused > 20
    mean.result()
    for n in (0, 10, len(payload) // 2, len(payload) - 1):
        with pytest.raises(rfc.PayloadError):
            mean.add(payload[:n])
    with pytest.raises(rfc.StateMismatchError, match="another reference"):
        mean.add(rfc.encode(reference, state))
    with pytest.raises(ValueError, match="state lacks"):
        mean.add_state({"fc.bias": state["fc.bias"]})


def test_contributions_of_other_sums_and_used_ones() -> None:
    reference = to_device(np.zeros((4, 5), np.float32))
    columns = {"roles": [Role.MATRIX], "dtypes": [DType.FLOAT32], "n_elems": [20]}
    tensors = Tensors(reference=[reference], **columns)
    first, second = (_native.DeviceAggregator(tensors, [False], 0, 0) for _ in range(2))
    one = first.prepare_state([to_device(np.ones((4, 5), np.float32))], 1.0, 0)
    with pytest.raises(ValueError, match="of another sum"):
        second.add(one, None, None, 0)
    first.add(one, None, None, 0)
    with pytest.raises(ValueError, match="of another sum"):
        first.add(one, None, None, 0)


def host_of(gpu: Gpu, aggregator: Any) -> Any:
    return gpu.host(aggregator.result())


@needs_emulator
@pytest.mark.parametrize("add_states", [False, True])
def test_every_call_fails_once(gpu: Gpu, rng: np.random.Generator, add_states: bool) -> None:
    """The error reports it, and unless it came while adding, nothing is added."""
    state, reference = padded(cnn_pair(rng))
    state["padding"][7] = 1
    huge = {**state, "fc.bias": state["fc.bias"] + np.float32(2.0**44)}
    on_device, base = gpu.state(huge), gpu.state(reference)
    payload = rfc.encode(huge, reference, sparsity=0.5)

    def add(aggregator: Any) -> None:
        if add_states:
            aggregator.add_state(on_device if aggregator is device else huge, 1.5)
        else:
            aggregator.add(payload, 1.5)

    host = rfc.Aggregator(reference)
    n_failures = n_late = 0
    while True:
        device = rfc.Aggregator(base)
        for _ in range(2):  # the third needs carries
            device.add_state(on_device)
        _native.release_workspace()
        before = host_of(gpu, device)
        _native.release_workspace()
        _native.emulate("fail_in", n_failures)
        try:
            add(device)
        except (MemoryError, RuntimeError):
            assert _native.emulate("fail_in", NEVER) == NEVER  # the error reports this failure
            if device.count == 2:
                assert_same(host_of(gpu, device), before)
                add(device)
            else:
                n_late += 1  # while it was added
        else:
            done = _native.emulate("fail_in", NEVER) != NEVER
            assert device.count == 3
            if done:
                break
        n_failures += 1
    for _ in range(2):
        host.add_state(huge)
    add(host)
    assert_same(host_of(gpu, device), host.result())
    assert n_failures > 15
    assert n_late <= 2


@needs_emulator
@pytest.mark.parametrize("library", LIBRARIES)
def test_out_of_memory(
    library: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(library, monkeypatch)
    state, reference = cnn_pair(rng)
    on_device, base = gpu.state(state), gpu.state(reference)
    payload = rfc.encode(state, reference)
    mean, expected = rfc.Aggregator(base), rfc.Aggregator(reference)
    for aggregator, model in ((mean, on_device), (expected, state)):
        aggregator.add(payload, 2)
        aggregator.add_state(model)
    rfc.release_workspace()
    _native.emulate("memory_limit", 0)
    try:
        for call in (
            lambda: mean.add(payload),
            lambda: mean.add_state(on_device),
            mean.result,
            lambda: rfc.Aggregator(base),
            lambda: mean.reset(base),
        ):
            with pytest.raises((MemoryError, RuntimeError), match="out of memory"):
                call()
    finally:
        _native.emulate("memory_limit", NEVER)
    assert mean.count == 2
    assert_same(gpu.host(mean.result()), expected.result())


@needs_emulator
def test_sums_of_what_changed_alone(gpu: Gpu) -> None:
    """A frozen tensor takes no memory for sums; where there is none, nothing is added."""
    reference = {"frozen": np.zeros((1000, 1000), np.float32), "w": np.zeros((10, 10), np.float32)}
    state = {**reference, "w": reference["w"] + 1}
    thawed = {**state, "frozen": reference["frozen"].copy()}
    thawed["frozen"][3, 4] = 1
    mean = twin(gpu, reference)
    rfc.release_workspace()
    _native.emulate("memory_limit", 18_000_000)  # 4 MB are the reference, 4 the mean
    try:
        mean.add(rfc.encode(state, reference))
        mean.result()
        with pytest.raises(MemoryError, match=r"where 16,\d+,\d+ bytes"):
            mean.device.add(rfc.encode(thawed, reference))
        mean.result()
    finally:
        _native.emulate("memory_limit", NEVER)
    mean.add(rfc.encode(thawed, reference))
    mean.result()


# ---- threads, and where the work is done


def test_many_threads_add_at_once(gpu: Gpu, rng: np.random.Generator) -> None:
    _, reference = cnn_pair(rng)
    payloads = [rfc.encode(moved(reference, rng), reference, sparsity=0.5) for _ in range(5)]
    state = moved(reference, rng)
    mean = twin(gpu, reference)
    for payload in payloads * 2:
        mean.host.add(payload, 3)
    mean.host.add_state(state)
    on_device = gpu.state(state)
    with ThreadPoolExecutor(4) as pool:
        adding = [pool.submit(mean.device.add, payload, 3) for payload in payloads * 2]
        adding.append(pool.submit(mean.device.add_state, on_device))
        for done in adding:
            done.result()
    assert mean.count == 11
    mean.result()


def test_models_stay_on_the_device(
    gpu: Gpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, reference = cnn_pair(rng)
    mean = rfc.Aggregator(gpu.state(reference))
    on_device = gpu.state(state)
    for name in ("copy_to_host", "copy_to_device"):
        monkeypatch.delattr(_native, name)
    mean.add_state(on_device, 2)
    mean.add(rfc.encode(state, reference))
    result = mean.result()
    monkeypatch.undo()
    expected = rfc.Aggregator(reference)
    expected.add_state(state, 2)
    expected.add(rfc.encode(state, reference))
    assert_same(gpu.host(result), expected.result())
