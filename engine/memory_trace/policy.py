"""What CUDA would do, on any device: autocast's choice of number format, and attention without its scores.

autocast("cuda") is switched off where there is no CUDA, and autocast("cpu") computes other operations in float32.

Dimension key: B images, H heads, L queries, M keys, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from engine.memory_trace.ledger import Ledger

# torch's AT_FORALL_LOWER_PRECISION_FP and AT_FORALL_FP32 (aten/src/ATen/autocast_mode.h), as far as these models go.
_HALF = frozenset([
    functional.linear, torch.conv2d, functional.conv2d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
    torch.bmm, torch.Tensor.bmm, torch.baddbmm, torch.mm, torch.addmm, functional.scaled_dot_product_attention,
])  # fmt: skip
_SINGLE = frozenset([
    functional.group_norm, torch.group_norm, functional.layer_norm, torch.layer_norm, functional.softmax, torch.softmax,
    torch.Tensor.softmax, functional.mse_loss, torch.exp, torch.pow, torch.Tensor.pow, torch.sum, torch.Tensor.sum,
])  # fmt: skip


class CudaPolicy(TorchFunctionMode):
    """Autocast to a 16-bit format, or none, with its cache of cast weights; and fused attention's memory."""

    def __init__(self, ledger: Ledger, half: torch.dtype | None, *, is_fused: bool) -> None:
        super().__init__()
        self.has_cache = True
        """Weights cast in the forward pass are kept until autocast ends; checkpointed blocks cast anew and use once."""
        self.is_on = True
        self._ledger = ledger
        self._half = half
        self._is_fused = is_fused
        self._cast: dict[int, Tensor] = {}

    def end_autocast(self) -> None:
        """Forget the weights that were cast; those that the backward pass needs live on in the graph."""
        self._cast.clear()

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function as CUDA would."""
        kwargs = kwargs or {}
        if self._half is not None and self.is_on and (func in _HALF or func in _SINGLE):
            change = self._to_half if func in _HALF else _to_single
            args = tuple(change(value) for value in args)
            kwargs = {name: change(value) for name, value in kwargs.items()}
        if func is functional.scaled_dot_product_attention and self._is_fused:
            query, key, value = args[:3] if len(args) >= 3 else (kwargs[name] for name in ("query", "key", "value"))
            return FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def _to_half(self, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == self._half:
            return value
        is_weight = value.requires_grad and value.is_leaf and value.dtype == torch.float32
        if is_weight and id(value) in self._cast:
            return self._cast[id(value)]
        cast = value.to(self._half)
        if is_weight:
            self._ledger.see(cast, "autocast")
            if self.has_cache:
                self._cast[id(value)] = cast
        return cast


def _to_single(value: Any) -> Any:  # noqa: ANN401
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


class FusedAttention(torch.autograd.Function):
    """The memory of FlashAttention: no scores; backward a float32 sum of the queries' gradient for 16-bit inputs.

    Dao 2023, arXiv:2307.08691, algorithm 2; the sum's rows are padded to 32. xformers' kernel keeps the same tensors.
    """

    @staticmethod
    def forward(ctx: Any, query_BHLD: Tensor, key_BHMD: Tensor, value_BHMD: Tensor) -> Tensor:  # noqa: ANN401
        """Return an output of the right shape and strides."""
        output_BHLD = _heads_last(query_BHLD)
        norms_BHL = query_BHLD.new_empty(query_BHLD.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query_BHLD, key_BHMD, value_BHMD, output_BHLD, norms_BHL)
        return output_BHLD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401, ARG004
        """Return gradients of the right shapes."""
        query_BHLD, key_BHMD, value_BHMD, _, _ = ctx.saved_tensors
        width = -(-query_BHLD.shape[-1] // 32) * 32
        held = None
        if query_BHLD.dtype != torch.float32:
            held = query_BHLD.new_empty((*query_BHLD.shape[:3], width), dtype=torch.float32)
        found = tuple(_heads_last(tensor) for tensor in (query_BHLD, key_BHMD, value_BHMD))
        del held
        return found


def _heads_last(tensor_BHLD: Tensor) -> Tensor:
    batch, heads, length, width = tensor_BHLD.shape
    return tensor_BHLD.new_empty((batch, length, heads, width)).transpose(1, 2)


class SlicedModel:
    """Stands for engine.attention.SlicedAttention: one head's scores at a time, computed again in the backward pass.

    The number of its operations does not depend on the batch, which is what planes are fitted to.
    """

    def __call__(
        self,
        attn: Any,  # noqa: ANN401 - diffusers' Attention, which has no types
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Return the attention's output."""
        attended = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        states = attn.to_q(hidden_states), attn.to_k(attended), attn.to_v(attended)
        heads = [attn.head_to_batch_dim(part) for part in states]
        joined = _OneHeadAtATime.apply(attn, *heads)  # type: ignore[no-untyped-call]
        project, dropout = attn.to_out
        output: Tensor = dropout(project(attn.batch_to_head_dim(joined)))
        return output


class _OneHeadAtATime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401
        ctx.attn = attn
        ctx.save_for_backward(query, key, value)
        parts = torch.empty_like(query)  # The heads' outputs, which are all there when the last head is computed.
        torch.bmm(attn.get_attention_scores(query[:1], key[:1]), value[:1])
        return parts.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        saved = ctx.saved_tensors  # Once: a checkpointed tensor can't be asked for twice.
        parts = [torch.empty_like(tensor) for tensor in saved]
        head = [tensor[:1].detach().requires_grad_() for tensor in saved]
        with torch.enable_grad():
            output = torch.bmm(ctx.attn.get_attention_scores(*head[:2]), head[2])
        torch.autograd.grad(output, head, gradients[0][:1].to(output.dtype))
        del output
        return None, *[parts.pop().clone() for _ in saved][::-1]
