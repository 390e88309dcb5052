"""The queries and keys that enter an attention's products, seen without a module of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class AttentionInputs(TorchFunctionMode):
    """Shows the queries and keys that enter an attention's products while it is active."""

    def __init__(self, show: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        """Call `show` with each query and key."""
        super().__init__()
        self.show = show

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - any of torch's functions
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Run one function of torch; look at the inputs of the attention's."""
        if func is nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key"), args, strict=False)) | dict(kwargs or {})
            self.show(named["query"], named["key"])
        elif func in MATMULS and args[0].ndim == 4:
            self.show(args[0], args[1].transpose(-1, -2))
        return func(*args, **(kwargs or {}))
