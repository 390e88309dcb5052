"""Compare operators on the emulated NPU with the CPU's: `run.py checks/operators.py [NAME...]`.

Prints one line per operator that differs, fails or fell back to the CPU, then a count; exit code 1
when there is any.
"""

import os
import sys
from collections.abc import Callable

os.environ.setdefault("TASK_QUEUE_ENABLE", "0")  # a failing operator raises at its own call
os.environ.setdefault("FAKECANN_STRICT", "0")

import torch
from torch import Tensor
from torch.nn import functional

Case = Callable[[Callable[..., Tensor]], object]


def cases() -> dict[str, Case]:
    """Each case makes its inputs with `t(*shape)` or `t(values)` and returns what to compare."""
    unary = """abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc erfinv exp exp2 expm1
        floor frac isfinite isinf isnan log log10 log1p log2 logit neg reciprocal relu round rsqrt
        sigmoid sign signbit sin sinc sinh sqrt square tan tanh trunc""".split()
    inplace = """abs_ ceil_ cos_ erf_ erfinv_ exp_ floor_ log_ neg_ reciprocal_ relu_ round_ rsqrt_
        sigmoid_ sin_ sqrt_ tanh_ zero_ trunc_""".split()
    binary = """add sub mul div true_divide floor_divide remainder fmod pow atan2 maximum minimum eq
        ne lt le gt ge logical_and logical_or logical_xor fmax fmin hypot copysign""".split()
    table: dict[str, Case] = {}
    for name in unary:
        table[name] = lambda t, name=name: getattr(torch, name)(t(3, 4) * 0.4 + 0.5)
    table["acosh"] = lambda t: (t(3, 4).abs() + 1.5).acosh()
    for name in inplace:
        table[name] = lambda t, name=name: getattr((t(3, 4) * 0.4 + 0.5).abs() * 0.9, name)()
    for name in binary:
        table[name] = lambda t, name=name: getattr(torch, name)(
            t(3, 4).abs() + 0.5, t(4).abs() + 0.5
        )
        table[name + " scalar"] = lambda t, name=name: getattr(torch, name)(
            t(3, 4).abs() + 0.5, 0.7
        )
    for name in (
        "fmax scalar",
        "fmin scalar",
        "maximum scalar",
        "minimum scalar",
        "atan2 scalar",
        "hypot scalar",
        "logical_and scalar",
        "logical_or scalar",
        "logical_xor scalar",
    ):
        del table[name]
    for name in "add_ sub_ mul_ div_ pow_ remainder_ floor_divide_ fmod_ eq_ ne_ lt_ gt_".split():
        table[name] = lambda t, name=name: getattr(t(3, 4).abs() + 0.5, name)(t(4).abs() + 0.5)
        table[name + " scalar"] = lambda t, name=name: getattr(t(3, 4).abs() + 0.5, name)(0.7)
    i = lambda t, *shape: (t(*shape) * 10).long()
    table |= {
        "div floor": lambda t: torch.div(t(3, 4), t(4).abs() + 0.5, rounding_mode="floor"),
        "div trunc": lambda t: torch.div(t(3, 4), 0.3, rounding_mode="trunc"),
        "int div": lambda t: i(t, 3, 4) // 3,
        "int mod": lambda t: i(t, 3, 4) % 3,
        "scalar minus": lambda t: 2.0 - t(3),
        "scalar over": lambda t: 2.0 / (t(3).abs() + 1),
        "scalar power": lambda t: 2.0 ** t(3),
        "bitwise": lambda t: (
            i(t, 4) & 3,
            i(t, 4) | 3,
            i(t, 4) ^ 3,
            ~i(t, 4),
            i(t, 4) & i(t, 4),
            i(t, 4) ^ i(t, 4),
        ),
        "shift": lambda t: (i(t, 4).abs() << 2, i(t, 4).abs() >> 1),
        "bool logic": lambda t: (
            (t(4) > 0) & (t(4) < 1),
            (t(4) > 0) | (t(4) < 1),
            ~(t(4) > 0),
            (t(4) > 0) ^ (t(4) < 1),
        ),
        "addcmul": lambda t: torch.addcmul(t(3), t(3), t(3), value=0.5),
        "addcdiv": lambda t: torch.addcdiv(t(3), t(3), t(3).abs() + 1, value=0.5),
        "addcmul_": lambda t: t(3).addcmul_(t(3), t(3), value=0.5),
        "addcdiv_": lambda t: t(3).addcdiv_(t(3), t(3).abs() + 1, value=0.5),
        "lerp": lambda t: (
            torch.lerp(t(3), t(3), 0.3),
            torch.lerp(t(3), t(3), t(3)),
            t(3).lerp_(t(3), 0.3),
        ),
        "clamp": lambda t: (
            t(9).clamp(-0.5, 0.5),
            t(9).clamp(min=0.1),
            t(9).clamp(max=0.1),
            t(9).clamp_(-0.1, 0.2),
            t(9).clamp_(min=0.0),
            t(9).clamp_min(0.2),
            t(9).clamp_max_(0.2),
        ),
        "clamp tensor": lambda t: (
            t(9).clamp(t(9) - 1, t(9) + 1),
            t(9).clamp(min=t(9)),
            t(9).clamp(max=t(9)),
        ),
        "nan_to_num": lambda t: torch.nan_to_num(
            t([float("nan"), float("inf"), -float("inf"), 1.0]), nan=0.5
        ),
        "where": lambda t: (torch.where(t(9) > 0, t(9), 0.0), torch.where(t(9) > 0, t(9), t(9))),
        "complex": lambda t: torch.view_as_real(torch.complex(t(3), t(3))),
        "isclose": lambda t: (
            torch.isclose(t(3), t(3)),
            torch.allclose(t(3), t(3)),
            torch.equal(t(3), t(3)),
        ),
        "isin": lambda t: torch.isin(i(t, 5), i(t, 2)),
        # reductions
        "sum": lambda t: (
            t(3, 4).sum(),
            t(3, 4).sum(1),
            t(3, 4).sum((0, 1), keepdim=True),
            (t(9) > 0).sum(),
        ),
        "mean": lambda t: (t(3, 4).mean(), t(3, 4).mean(-1, keepdim=True)),
        "var": lambda t: (
            t(3, 4).var(),
            t(3, 4).var(1),
            t(3, 4).var(1, unbiased=False),
            *torch.var_mean(t(3, 4), 1),
            *torch.std_mean(t(3, 4), 1),
        ),
        "std": lambda t: (t(3, 4).std(), t(3, 4).std(1), t(3, 4).std(1, unbiased=False)),
        "prod": lambda t: (t(3, 4).prod(), t(3, 4).prod(1)),
        "max": lambda t: (
            t(3, 4).max(),
            *t(3, 4).max(1),
            t(3, 4).amax(1),
            t(3, 4).argmax(),
            t(3, 4).argmax(1),
        ),
        "min": lambda t: (
            t(3, 4).min(),
            *t(3, 4).min(1),
            t(3, 4).amin(1),
            t(3, 4).argmin(),
            t(3, 4).argmin(1),
        ),
        "aminmax": lambda t: tuple(torch.aminmax(t(3, 4))),
        "median": lambda t: (t(7).median(), *t(3, 5).median(1)),
        "kthvalue": lambda t: tuple(t(3, 5).kthvalue(2, 1)),
        "quantile": lambda t: torch.quantile(t(9), 0.25),
        "all any": lambda t: (
            (t(9) > 0).all(),
            (t(9) > 0).any(),
            (t(3, 3) > 0).all(1),
            (t(3, 3) > 0).any(1),
        ),
        "norm": lambda t: (
            t(3, 4).norm(),
            t(3, 4).norm(dim=1),
            torch.linalg.vector_norm(t(3, 4), dim=1),
            torch.linalg.norm(t(3, 4)),
            t(9).norm(1),
        ),
        "logsumexp": lambda t: t(3, 4).logsumexp(1),
        "cumsum": lambda t: (t(3, 4).cumsum(1), i(t, 9).cumsum(0), (t(9) > 0).cumsum(0)),
        "cumprod": lambda t: t(3, 4).cumprod(1),
        "cummax": lambda t: (*t(9).cummax(0), *t(9).cummin(0)),
        "nansum": lambda t: torch.nansum(t([1.0, float("nan")])),
        "count_nonzero": lambda t: torch.count_nonzero(t(9) > 0),
        "histc": lambda t: torch.histc(t(50), bins=5, min=-1, max=1),
        "bincount": lambda t: torch.bincount(i(t, 9).abs()),
        "sort": lambda t: (*t(3, 4).sort(1), *t(9).sort(descending=True), t(9).argsort()),
        "topk": lambda t: (*t(3, 9).topk(2), *t(9).topk(3, largest=False)),
        "unique": lambda t: (
            torch.unique(i(t, 9)),
            *torch.unique(i(t, 9), return_inverse=True, return_counts=True),
            torch.unique_consecutive(i(t, 9).sort().values),
        ),
        "searchsorted": lambda t: (
            torch.searchsorted(t(9).sort().values, t(4)),
            torch.bucketize(t(4), t(9).sort().values),
        ),
        # tensors
        "creation": lambda t: (
            torch.arange(5, device=t(1).device),
            torch.linspace(0, 1, 7, device=t(1).device),
            torch.eye(3, 4, device=t(1).device),
            torch.full((2,), 3.5, device=t(1).device),
            torch.ones_like(t(3)),
            torch.zeros_like(t(3)),
            torch.full_like(t(3), 2.5),
            torch.logspace(0, 1, 4, device=t(1).device),
        ),
        "casts": lambda t: (
            t(5).half(),
            t(5).bfloat16(),
            t(5).int(),
            t(5) > 0,
            (t(5) > 0).float(),
            t(5).long(),
            i(t, 5).to(torch.uint8),
        ),
        "cat": lambda t: (
            torch.cat([t(2, 3), t(1, 3)]),
            torch.stack([t(3), t(3)], 1),
            torch.hstack([t(3), t(3)]),
            torch.vstack([t(3), t(3)]),
        ),
        "split": lambda t: (
            *t(6, 2).split(2),
            *t(6, 2).chunk(4),
            *torch.unbind(t(3, 2)),
            *torch.split_with_sizes_copy(t(6, 2), [2, 4]),
        ),
        "repeat": lambda t: (
            t(2, 3).repeat(2, 2),
            t(2, 3).repeat_interleave(2, 0),
            t(3).repeat_interleave(2),
            torch.repeat_interleave(t(3), i(t, 3).abs()),
            t(2, 3).tile(1, 2),
            t(1, 3).expand(4, 3).contiguous(),
        ),
        "flip roll": lambda t: (
            t(3, 4).flip(1),
            t(3, 4).roll(1, 0),
            t(9).roll(2),
            torch.rot90(t(3, 4)),
        ),
        "tril": lambda t: (
            t(4, 4).tril(),
            t(4, 4).triu(1),
            t(4, 4).tril_(),
            t(4, 4).triu_(-1),
            t(4, 4).diag(),
            t(4, 4).diagonal().sum(),
            t(4, 4).trace(),
            torch.diag_embed(t(3)),
        ),
        "pad": lambda t: (
            functional.pad(t(1, 2, 3, 3), (1, 1, 2, 0)),
            functional.pad(t(1, 2, 4, 4), (1, 1, 1, 1), value=2.0),
            functional.pad(t(1, 2, 4, 4), (1, 1, 1, 1), mode="reflect"),
            functional.pad(t(1, 2, 4, 4), (1, 1, 1, 1), mode="replicate"),
        ),
        "gather": lambda t: (
            t(3, 4).gather(1, i(t, 3, 2).abs() % 4),
            torch.take_along_dim(t(3, 4), i(t, 3, 2).abs() % 4, 1),
            t(3, 4).take(i(t, 3).abs() % 12),
        ),
        "scatter": lambda t: (
            t(3, 4).scatter(1, i(t, 3, 1).abs() % 4, t(3, 1)),
            t(3, 4).scatter(1, i(t, 3, 1).abs() % 4, 0.5),
            t(3, 4).scatter_(1, i(t, 3, 1).abs() % 4, 1.0),
            t(3, 4).scatter_(1, i(t, 3, 1).abs() % 4, t(3, 1)),
            t(3, 4).scatter_add(1, i(t, 3, 2).abs() % 4, t(3, 2)),
            t(3, 4).scatter_add_(1, i(t, 3, 2).abs() % 4, t(3, 2)),
            t(3, 4).scatter_reduce(1, i(t, 3, 2).abs() % 4, t(3, 2), "amax"),
        ),
        "index": lambda t: (
            t(4, 3)[i(t, 2).abs() % 4],
            t(4, 3)[:, i(t, 2).abs() % 3],
            t(4, 3)[i(t, 2).abs() % 4, i(t, 2).abs() % 3],
            t(4, 3).index_select(1, i(t, 2).abs() % 3),
        ),
        "boolean index": lambda t: (
            t(4, 3)[t(4, 3) > 0],
            t(4, 3)[t(4) > 0],
            torch.masked_select(t(9), t(9) > 0),
            torch.nonzero(t(3, 4) > 0),
            *torch.where(t(3, 4) > 0),
            torch.argwhere(t(9) > 0),
        ),
        "index_put": lambda t: (
            t(9).index_put((i(t, 2).abs() % 9,), t(2)),
            t(9).index_put_((t(9) > 0,), t([1.0])),
            t(9).index_put((i(t, 20).abs() % 9,), t(20), accumulate=True),
        ),
        "assign": lambda t: [
            x
            for x in (t(4, 3), t(4, 3), t(4, 3), t(4, 3))
            if [
                x.__setitem__(0, 1.0),
                x.__setitem__((slice(None), 1), t(4)),
                x.__setitem__(x > 0.5, 0.0),
                x.__setitem__((i(t, 2).abs() % 4, i(t, 2).abs() % 3), t(2)),
            ]
        ],
        "index_add": lambda t: (
            t(4, 3).index_add(0, t([1, 3]).long(), t(2, 3)),
            t(4, 3).index_copy(0, t([1, 3]).long(), t(2, 3)),
            t(4, 3).index_fill(0, t([1, 3]).long(), 2.5),
            t(4, 3).index_add_(0, t([1, 3]).long(), t(2, 3), alpha=0.5),
        ),
        "masked": lambda t: (
            t(9).masked_fill(t(9) > 0, 1.5),
            t(9).masked_fill_(t(9) > 0, t([2.0])[0]),
            t(9).masked_scatter(t(9) > 0, t(9)),
        ),
        "one_hot": lambda t: functional.one_hot(i(t, 5).abs(), 60),
        "meshgrid": lambda t: (
            *torch.meshgrid(t(3), t(2), indexing="ij"),
            torch.cartesian_prod(t(2), t(3)),
        ),
        "outer": lambda t: (torch.outer(t(3), t(2)), torch.kron(t(2, 2), t(2, 2))),
        "cdist": lambda t: torch.cdist(t(3, 4), t(2, 4)),
        "unfold": lambda t: (
            functional.unfold(t(1, 2, 6, 6), 2, stride=2),
            t(9).unfold(0, 3, 2).contiguous(),
        ),
        "item": lambda t: (
            t(1).item(),
            t(3).tolist(),
            bool((t(1) == t(1)).all()),
            float(t(3).sum()),
        ),
        # linear algebra
        "matmul": lambda t: (
            t(3, 4) @ t(4, 5),
            t(2, 3, 4) @ t(2, 4, 5),
            t(2, 3, 4) @ t(4, 5),
            t(4) @ t(4),
            t(3, 4) @ t(4),
            t(2, 2, 3, 4) @ t(2, 2, 4, 3),
        ),
        "bmm": lambda t: (
            torch.bmm(t(2, 3, 4), t(2, 4, 5)),
            torch.baddbmm(t(2, 3, 5), t(2, 3, 4), t(2, 4, 5), beta=0.5, alpha=2.0),
            t(2, 3, 5).baddbmm_(t(2, 3, 4), t(2, 4, 5)),
        ),
        "addmm": lambda t: (
            torch.addmm(t(5), t(3, 4), t(4, 5), beta=0.5, alpha=2.0),
            t(3, 5).addmm_(t(3, 4), t(4, 5)),
            torch.addmv(t(3), t(3, 4), t(4)),
            torch.mv(t(3, 4), t(4)),
            torch.dot(t(4), t(4)),
            torch.addr(t(3, 2), t(3), t(2)),
        ),
        "einsum": lambda t: (
            torch.einsum("bij,bjk->bik", t(2, 3, 4), t(2, 4, 5)),
            torch.einsum("bhnd,bhmd->bhnm", t(1, 2, 3, 4), t(1, 2, 5, 4)),
        ),
        "linalg": lambda t: (
            torch.linalg.inv(t(3, 3) + 5 * torch.eye(3, device=t(1).device)),
            torch.linalg.cross(t(2, 3), t(2, 3)),
        ),
        # layers
        "linear": lambda t: (
            functional.linear(t(3, 4), t(5, 4), t(5)),
            functional.linear(t(2, 3, 4), t(5, 4)),
        ),
        "softmax": lambda t: (
            t(3, 4).softmax(1),
            t(3, 4).log_softmax(-1),
            functional.softmin(t(3), 0),
        ),
        "norms": lambda t: (
            functional.layer_norm(t(3, 4), (4,), t(4), t(4)),
            functional.layer_norm(t(3, 4), (4,)),
            functional.group_norm(t(2, 4, 3, 3), 2, t(4), t(4)),
            functional.batch_norm(t(2, 4, 3, 3), t(4), t(4).abs() + 1, t(4), t(4)),
            functional.batch_norm(t(2, 4, 3, 3), t(4), t(4).abs() + 1, training=True),
            functional.normalize(t(3, 4)),
            functional.rms_norm(t(3, 4), (4,), t(4)),
            functional.instance_norm(t(2, 4, 3, 3)),
        ),
        "activations": lambda t: (
            functional.gelu(t(9)),
            functional.gelu(t(9), approximate="tanh"),
            functional.silu(t(9)),
            functional.leaky_relu(t(9)),
            functional.elu(t(9)),
            functional.softplus(t(9)),
            functional.mish(t(9)),
            functional.hardswish(t(9)),
            functional.hardsigmoid(t(9)),
            functional.hardtanh(t(9)),
            functional.relu6(t(9)),
            functional.logsigmoid(t(9)),
            functional.glu(t(4, 6)),
            functional.prelu(t(9), t(1)),
            functional.threshold(t(9), 0.1, 0.2),
            functional.selu(t(9)),
            functional.celu(t(9)),
            functional.softshrink(t(9)),
            functional.tanhshrink(t(9)),
        ),
        "embedding": lambda t: functional.embedding(i(t, 5).abs() % 7, t(7, 3)),
        "pooling": lambda t: (
            functional.max_pool2d(t(1, 2, 6, 6), 2),
            functional.avg_pool2d(t(1, 2, 6, 6), 2),
            functional.adaptive_avg_pool2d(t(1, 2, 6, 6), 1),
            functional.adaptive_avg_pool2d(t(1, 2, 6, 6), (2, 3)),
            functional.adaptive_avg_pool1d(t(1, 2, 6), 1),
            functional.adaptive_max_pool2d(t(1, 2, 6, 6), 2),
        ),
        "resize": lambda t: tuple(
            functional.interpolate(t(1, 2, 6, 6), (9, 11), mode=mode)
            for mode in ("nearest", "bilinear", "bicubic", "area", "nearest-exact")
        ),
        "resize antialias": lambda t: tuple(
            functional.interpolate(t(1, 2, 9, 9), (5, 4), mode=mode, antialias=True)
            for mode in ("bilinear", "bicubic")
        ),
        "resize 1d 3d": lambda t: (
            functional.interpolate(t(1, 2, 6), 9, mode="linear"),
            functional.interpolate(t(1, 2, 6), 9),
            functional.interpolate(t(1, 2, 3, 3, 3), (4, 4, 4), mode="trilinear"),
        ),
        "grid_sample": lambda t: functional.grid_sample(
            t(1, 2, 5, 5), t(1, 3, 3, 2).clamp(-1, 1), align_corners=False
        ),
        "pixel_shuffle": lambda t: (
            functional.pixel_shuffle(t(1, 4, 3, 3), 2),
            functional.pixel_unshuffle(t(1, 1, 4, 4), 2),
        ),
        "sdpa": lambda t: (
            functional.scaled_dot_product_attention(t(1, 2, 5, 8), t(1, 2, 5, 8), t(1, 2, 5, 8)),
            functional.scaled_dot_product_attention(
                t(1, 2, 5, 8), t(1, 2, 5, 8), t(1, 2, 5, 8), is_causal=True
            ),
            functional.scaled_dot_product_attention(
                t(1, 2, 5, 8), t(1, 2, 5, 8), t(1, 2, 5, 8), attn_mask=t(1, 1, 5, 5) > -5
            ),
        ),
        "losses": lambda t: (
            functional.mse_loss(t(3, 4), t(3, 4)),
            functional.l1_loss(t(3, 4), t(3, 4)),
            functional.smooth_l1_loss(t(3, 4), t(3, 4)),
            functional.huber_loss(t(3, 4), t(3, 4)),
            functional.cross_entropy(t(3, 4), i(t, 3).abs() % 4),
            functional.cross_entropy(t(3, 4), i(t, 3).abs() % 4, label_smoothing=0.1),
            functional.nll_loss(t(3, 4), i(t, 3).abs() % 4),
            functional.binary_cross_entropy(t(9).sigmoid(), t(9).sigmoid()),
            functional.binary_cross_entropy_with_logits(t(9), t(9).sigmoid()),
            functional.kl_div(t(3, 4).log_softmax(1), t(3, 4).softmax(1), reduction="batchmean"),
            functional.cosine_embedding_loss(t(3, 4), t(3, 4), t([1.0, -1.0, 1.0])),
            functional.triplet_margin_loss(t(3, 4), t(3, 4), t(3, 4)),
        ),
        "cosine_similarity": lambda t: (
            functional.cosine_similarity(t(3, 4), t(3, 4)),
            functional.cosine_similarity(t(3, 4), t(4), dim=-1),
            functional.pairwise_distance(t(3, 4), t(3, 4)),
        ),
        "convolution": lambda t: (
            functional.conv2d(t(1, 3, 6, 6), t(4, 3, 3, 3), t(4), padding=1),
            functional.conv2d(t(1, 4, 6, 6), t(4, 1, 3, 3), groups=4),
            functional.conv1d(t(1, 3, 9), t(4, 3, 3)),
            functional.conv_transpose2d(t(1, 3, 4, 4), t(3, 4, 2, 2), stride=2),
            functional.conv3d(t(1, 1, 4, 4, 4), t(2, 1, 2, 2, 2)),
        ),
    }
    return table


class Inputs:
    """The same random numbers in the same order, on any device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int | list[float]) -> Tensor:
        """Return N(0, 1) numbers of the shape, or the values given, as fp32."""
        if isinstance(shape[0], list):
            return torch.tensor(shape[0], dtype=torch.float32).to(self.device)
        return torch.randn(shape, generator=self.generator).to(self.device)


def on_cpu(result: object) -> list[object]:
    """Flatten a case's result into CPU tensors and plain values."""
    if isinstance(result, Tensor):
        return [result.cpu()]
    if isinstance(result, tuple | list):
        return [part for element in result for part in on_cpu(element)]
    return [result]


def compare(case: Case) -> str:
    """Run a case on both; return what is wrong, or an empty string."""
    expected = on_cpu(case(Inputs("cpu")))
    try:
        actual = on_cpu(case(Inputs("npu")))
        torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4, equal_nan=True)
    except Exception as error:  # noqa: BLE001 - every kind of failure is reported in the same line
        lines = str(error).strip().splitlines()
        told = [line for line in lines if "not emulated" in line or "not in" in line]
        return f"{type(error).__name__}: {(told or lines or [''])[0][:200]}"
    return ""


def main() -> int:
    """Compare all cases, or those named on the command line."""
    torch.npu.conv.allow_hf32 = False
    wanted = sys.argv[1:]
    failed = 0
    for name, case in cases().items():
        if wanted and name not in wanted:
            continue
        problem = compare(case)
        failed += bool(problem)
        if problem:
            print(f"{name}: {problem}", flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
