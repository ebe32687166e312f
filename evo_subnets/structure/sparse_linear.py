"""Linear layers with few weights left, multiplied without the zeros."""

import warnings

import torch
from torch import Tensor, nn

from evo_subnets.copies import copied

LEAST_SPARSITY = 0.9
LEAST_WEIGHTS = 2**19
"""From here on the sparse product is as fast as the dense one or faster for 1, 64 and 1,024 rows
(`benchmarks/sparse_linear.py`): 0.97 to 4.6 times at 90 %. At a sparsity of 0.8 it is behind for
1,024 rows, and a small layer's call costs more than its product."""


class SparseLinear(nn.Module):
    """(..., inputs) to (..., outputs), as the `nn.Linear` that it is made of; for inference alone.

    The weight is kept as compressed sparse rows with 32-bit indices: 8 bytes a value that is not
    zero. It takes no gradient.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with warnings.catch_warnings():  # torch calls the layout a beta at its first use
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            weight = linear.weight.detach().to_sparse_csr()
        # With 64 bits MKL would be given a copy of the indices at every call.
        self.register_buffer("starts", weight.crow_indices().int())
        self.register_buffer("columns", weight.col_indices().int())
        self.register_buffer("values", weight.values().clone())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        shape = self.out_features, self.in_features
        weight = torch.sparse_csr_tensor(  # no copy; a sparse buffer could not be deep-copied
            self.starts, self.columns, self.values, shape, check_invariants=False
        )
        columns = x.reshape(-1, self.in_features).t()
        if self.bias is None:
            product = torch.mm(weight, columns)
        else:
            product = torch.addmm(self.bias[:, None], weight, columns)
        return product.t().reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.values.numel()} weights"


def sparse_linear(module: nn.Module, least_sparsity: float = LEAST_SPARSITY) -> nn.Module:
    """A copy of `module` for inference on a CPU, whose sparsest linear layers skip their zeros.

    Outputs are the same within rounding. Those of its layers stay as they are that have less than
    `LEAST_WEIGHTS` weights (zeros included), are on another device or not of float32 or float64.
    """
    sparse = copied(module).eval()
    if isinstance(sparse, nn.Linear):
        return SparseLinear(sparse) if _worth(sparse, least_sparsity) else sparse
    for parent in list(sparse.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and _worth(layer, least_sparsity):
                setattr(parent, name, SparseLinear(layer))
    return sparse


def _worth(layer: nn.Linear, least_sparsity: float) -> bool:
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return False
    zeros = weight.numel() - int(weight.count_nonzero())
    return weight.numel() >= LEAST_WEIGHTS and zeros >= least_sparsity * weight.numel()
