"""Linear layers with few weights left, multiplied without the zeros."""

import copy
import warnings

import torch
from torch import Tensor, nn

SPARSEST_DENSE = 0.95


class SparseLinear(nn.Module):
    """(..., inputs) to (..., outputs), as the `nn.Linear` that it is made of; for inference alone.

    The weight is kept as compressed sparse rows with 32-bit indices: 8 bytes a value that is not
    zero. It takes no gradient, and is in `state_dict` as its own, sparse tensor.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with warnings.catch_warnings():  # torch calls the layout a beta at its first use
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            wide = linear.weight.detach().to_sparse_csr()
            weight = torch.sparse_csr_tensor(
                wide.crow_indices().int(), wide.col_indices().int(), wide.values(), wide.shape
            )  # with 64 bits MKL would get a copy of the indices at every call
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        columns = x.reshape(-1, self.in_features).t()
        if self.bias is None:
            product = torch.mm(self.weight, columns)
        else:
            product = torch.addmm(self.bias[:, None], self.weight, columns)
        return product.t().reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.weight.values().numel()} weights"


def sparse_linear(module: nn.Module, least_sparsity: float = SPARSEST_DENSE) -> nn.Module:
    """A copy of `module` for inference on a CPU, whose sparsest linear layers skip their zeros.

    Outputs are the same within rounding. Layers on other devices, in other types than float32 and
    float64, and below `least_sparsity` stay as they are.
    """
    sparse = copy.deepcopy(module).eval()
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
    return 1 - int(weight.count_nonzero()) / weight.numel() >= least_sparsity
