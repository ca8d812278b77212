"""Tensors that are dense by default, by name, and the buffer names that a module reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.tensors.layout import TensorSpec, specs_of, views_of
from resfed_codec.tensors.roles import role_overrides

REPLACED = [
    # each line is a model; the names before "|" are dense by default
    "bn.running_mean bn.running_var | bn.weight bn.bias",
    "module.bn.running_mean | module.bn.weight",
    "_orig_mod.bn.running_var _fsdp_wrapped_module.bn.running_mean | _orig_mod.bn.weight",
    "bn/moving_mean:0 bn/moving_variance:0 | bn/gamma:0 bn/beta:0",
    "model/bn/moving_variance bn_moving_mean | bn/gamma",
    "params_running_covar x.running_std | x.running_weight x.moving",
    "vq._codebook.embed vq._codebook.embed_avg vq._codebook.cluster_size | vq.project.weight",
    "vq._ema_cluster_size vq._ema_w vq._embedding.weight | _embedding.weight vq.embed.weight",
    "q.ema_w q.embedding.weight | embedding.weight q.weight",
    "e.weight e.embed_avg e.cluster_size c.embed_sum c.cluster_usage | embed.weight c.weight",
    "codebook.N codebook.z_avg codebook.embeddings | N embeddings word.embeddings",
    "vq/~/ema_dw/average vq/~/ema_cluster_size/hidden | vq/embeddings vq/average",
    " | embed.weight token.embed embed",
    "a.min_val a.max_val a.histogram q.scale q.zero_point | q.weight",
    " | min_val norm.scale logit_scale",
    "dense/sn_u:0 conv/vector_u | dense/kernel:0",
    "fc.weight_u fc.weight_v | fc.weight_orig fc.bias",
    "fc.weight_u fc.weight_v | fc.weight_bar",
    " | fc.weight_g fc.weight_v",
    " | attn.proj_v attn.proj_u W_u W_v weight_u embedding.weight_v",
    " | lora_u lora_v cell.U_u x_orig",
    "a.parametrizations.weight.0._u a.parametrizations.weight.0._v"
    " | a.parametrizations.weight.original a._u",
    "a.u0 a.sv0 | a.weight b.u0",
    "batch_stats/BatchNorm_0/mean batch_stats/BatchNorm_0/var | params/BatchNorm_0/scale",
    "['batch_stats']['bn']['mean'] | ['params']['bn']['scale']",
    "batch_stats.bn.mean bn1.mean bn1.var | bn1.scale head.mean params.mean.kernel",
    "bn/~/mean_ema/average bn/~/mean_ema/hidden | bn/average bn/~/w",
    "['bn']['mean'].value ['bn']['var'].value .a.var.raw_value .a.mean.raw_value"
    " | ['bn']['scale'].value .head.mean.kernel.value .head.mean.bias.value",
    "bn/moving_mean/.ATTRIBUTES/VARIABLE_VALUE | bn/gamma/.ATTRIBUTES/VARIABLE_VALUE",
    "normalization/mean normalization/variance | head/mean/kernel head/variance/kernel",
    "bn/renorm_mean:0 bn/renorm_stddev:0 | bn/gamma:0",
    "bn._mean bn._variance bn2.avg_mean | bn.w_0 layer._mean",
]


@pytest.mark.parametrize("line", REPLACED)
def test_names(line: str) -> None:
    replaced, others = (side.split() for side in line.split("|"))
    names = sorted({*replaced, *others})
    specs = tuple(TensorSpec(name, (4,), "float32") for name in names)
    overrides = role_overrides(specs, rfc.CodecConfig())
    assert {specs[i].name for i in overrides.dense} == set(replaced)


def test_integers_are_never_dense() -> None:
    specs = (TensorSpec("bn.running_mean", (4,), "int32"), TensorSpec("w", (4,), "float32"))
    assert role_overrides(specs, rfc.CodecConfig()).dense == ()


def test_a_name_takes_precedence_over_a_pattern() -> None:
    """A pattern that equals a tensor's name matches only that tensor, in all three options."""
    rng = np.random.default_rng(0)
    names = ["w[1]", "w1", "w*", "w?"]
    reference = {name: np.zeros((8, 8), np.float32) for name in names}
    state = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in names}
    for name in names:
        kept = {n: rfc.decode(rfc.encode(state, reference, exclude=name), reference)[n]
                for n in names}  # fmt: skip
        assert [n for n in names if np.array_equal(kept[n], state[n])] == [name]
        info = rfc.inspect(rfc.encode(state, reference, dense=(name,)))
        assert info.dense_tensors == (sorted(names).index(name),)
        predictor = rfc.LinearPredictor(own=(1,), tensors={name: ((0.5,), ())})
        payload = rfc.Encoder(reference, predictor=predictor).encode(state)
        link = rfc.inspect(payload).link
        assert link is not None
        assert list(link.per_tensor) == [sorted(names).index(name)]
    exclude = ("w[1]", "w[?]")  # a name, and a pattern: w? itself
    payload = rfc.encode(state, reference, exclude=exclude)
    assert rfc.inspect(payload).exclusions == (
        sorted(names).index("w?"),
        sorted(names).index("w[1]"),
    )


@pytest.mark.parametrize("argument", ["exclude", "dense"])
def test_a_pattern_without_a_match_is_an_error_with_a_suggestion(argument: str) -> None:
    model = {"layer.weight": np.zeros((2, 2), np.float32), "steps": np.zeros(1, np.int32)}
    message = f"{argument}: no tensor is named like 'layer.wieght'; did you mean 'layer.weight'?"
    for call in (
        lambda **options: rfc.encode(model, model, **options),
        lambda **options: rfc.Encoder(model, **options),
        lambda **options: rfc.ServerSession(model, downlink=rfc.CodecConfig(**options)),
        lambda **options: rfc.ClientSession(model, uplink=rfc.CodecConfig(**options)),
    ):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            call(**{argument: ["layer.weight", "layer.wieght"]})
        call(**{argument: "step[s]"})  # a tensor that is lossless anyway
        call(**{argument: ()})


# ---- torch


torch = pytest.importorskip("torch")
nn = torch.nn


def conv_of(norm: Callable[..., Any]) -> Any:
    return norm(nn.Conv2d(3, 4, 3))


def quantized() -> Any:
    from torch.ao import quantization

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(model.train())


MODULES: dict[str, Callable[[], Any]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.InstanceNorm1d(3)),
    "instance norm": lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
    "spectral norm": lambda: conv_of(nn.utils.spectral_norm),
    "spectral norm by parametrization": lambda: conv_of(nn.utils.parametrizations.spectral_norm),
    "weight norm": lambda: conv_of(nn.utils.weight_norm),
    "weight norm by parametrization": lambda: conv_of(nn.utils.parametrizations.weight_norm),
    "wrapped": lambda: nn.DataParallel(nn.Sequential(nn.BatchNorm1d(3))),
    "compiled": lambda: torch.compile(nn.Sequential(nn.BatchNorm1d(3))),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2),
}


@pytest.mark.filterwarnings("ignore")  # of torch: some of these are deprecated
@pytest.mark.parametrize("kind", MODULES)
def test_names_and_modules_agree(kind: str) -> None:
    module = MODULES[kind]()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    payload = rfc.encode(state, {k: v.clone() for k, v in state.items()})
    dense = {sorted(state)[i] for i in rfc.inspect(payload).dense_tensors}
    assert dense == set(rfc.buffer_names(module))
    parameters = {name for name, _ in module.named_parameters()}
    assert dense == {n for n, v in state.items() if n not in parameters and v.is_floating_point()}


@pytest.mark.filterwarnings("ignore")
def test_observers() -> None:
    module = quantized()
    replaced = set(rfc.buffer_names(module))
    specs = specs_of(views_of(module.state_dict(), "state"))
    dense = {specs[i].name for i in role_overrides(specs, rfc.CodecConfig()).dense}
    assert dense <= replaced
    constant = {name for name in replaced if name.endswith("eps")}
    assert dense == replaced - constant
    assert any(name.endswith("min_val") for name in dense)


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("queue", torch.zeros(4))
        self.register_buffer("low", torch.zeros(4, dtype=torch.bfloat16))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("z", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("f8", torch.zeros(2, dtype=torch.float8_e5m2))
        self.register_buffer("temporary", torch.zeros(4), persistent=False)
        self.register_buffer("absent", None)


def test_buffer_names() -> None:
    net = nn.Sequential(Buffers(), nn.Linear(3, 3), Buffers())
    expected = ("0.queue", "0.low", "2.queue", "2.low")
    assert rfc.buffer_names(net) == expected
    config = rfc.CodecConfig(dense=rfc.buffer_names(net))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    info = rfc.inspect(rfc.encode(state, net.state_dict(), config))
    assert {sorted(state)[i] for i in info.dense_tensors} == set(expected)
    assert rfc.buffer_names(nn.DataParallel(net)) == tuple(f"module.{n}" for n in expected)
    assert rfc.buffer_names(torch.compile(net)) == tuple(f"_orig_mod.{n}" for n in expected)
    assert rfc.buffer_names(nn.Linear(2, 2)) == ()
    assert rfc.CodecConfig(dense=()) == rfc.CodecConfig(dense=rfc.buffer_names(nn.Linear(2, 2)))


def test_buffer_names_are_those_of_the_state_dict() -> None:
    """Also for shared buffers, and names that a wrapper removes or a hook changes."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    shared = nn.BatchNorm1d(3)
    net = nn.Sequential(shared, nn.Sequential(shared), checkpoint_wrapper(nn.BatchNorm1d(3)))
    names = rfc.buffer_names(net)
    assert names == tuple(
        f"{module}.running_{what}" for module in ("0", "1.0", "2") for what in ("mean", "var")
    )
    assert set(names) <= set(net.state_dict())


def test_buffer_names_where_a_hook_copies() -> None:
    """As the hook of FullyShardedDataParallel does, which also shortens the names."""

    class Sharded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
            self.register_state_dict_post_hook(self.copied)

        @staticmethod
        def copied(module: Any, state: Any, prefix: str, metadata: Any) -> None:
            for name in list(state):
                state[name.replace("_fsdp_wrapped_module.", "")] = state.pop(name).clone()

    net = nn.Sequential(Sharded())
    assert "0.1.running_mean" in net.state_dict()
    assert rfc.buffer_names(net) == ("0.1.running_mean", "0.1.running_var")


def test_buffer_names_of_no_module() -> None:
    for value in (None, {"w": torch.zeros(2)}, nn.Linear):
        with pytest.raises(TypeError, match=r"module: must be a torch.nn.Module or a"):
            rfc.buffer_names(value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm], ids=["old", "new"]
)
def test_network_with_spectral_norm(norm: Callable[..., Any]) -> None:
    """The default recovers it as ``dense`` with the vectors' names does; no dense, much worse."""
    torch.manual_seed(0)

    def make() -> Any:
        layers = (nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 1))
        a, b, c = (norm(layer) for layer in layers)
        return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c)

    net, data = make(), torch.randn(512, 32)
    target = torch.sin(2 * data[:, :1])
    reference = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        ((net(data) - target) ** 2).mean().backward()
        optimizer.step()
    state = net.eval().state_dict()

    def distance(dense: Any) -> float:
        """Mean squared difference between the outputs of the recovered and the original network."""
        recovered = make().eval()
        payload = rfc.encode(state, reference, sparsity=0.99, dense=dense)
        recovered.load_state_dict(rfc.decode(payload, reference))
        with torch.no_grad():
            return float(((recovered(data) - net(data)) ** 2).mean())

    assert distance(None) == distance(rfc.buffer_names(net))
    assert distance(()) > 1.5 * distance(None)
