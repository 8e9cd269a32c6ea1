"""torch's optimiser without its guards against `torch.compile`.

torch shields the bookkeeping of an optimiser from being compiled, and imports its compiler for that at the first
call: longer than most few-shot fits take. Here nothing of it is compiled (a compiled *model* is another matter, and
welcome).
"""

import inspect

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """`torch.optim.Optimizer`, its methods as they are beneath the guard."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
