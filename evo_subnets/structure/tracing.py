"""A forward pass as a graph."""

from torch import fx, nn


def graph_of(module: nn.Module) -> fx.Graph:
    """What torch.fx finds; its errors where it cannot follow the pass.

    The graph goes round in circles of references, and so does what has traced it. They do not hold
    the module, which would wait for the garbage collector then.
    """
    tracer = fx.Tracer()
    try:
        return tracer.trace(module)
    finally:
        vars(tracer).clear()
