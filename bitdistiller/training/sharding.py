"""Weights sharded over the processes of a run: torch's ``fully_shard``, a unit for each block of the network.

Each process holds its part of every tensor, of its gradient and of the optimizer's two moments, all in fp32. A block's
weights are gathered when it is their turn, forward and again backward, and let go of afterwards: what a process needs
on top of its part is one block, the embeddings and the activations. Weights are gathered in fp32 and not in bf16,
because the values that a quantizer rounds are the fp32 ones; matrix products run in bf16 all the same, under autocast.
Gradients are summed over processes after every pass (``sync_each_batch``): kept for a whole step they would be kept
whole.

``Trainer`` knows models that come sharded and leaves them alone. What it cannot do is write their optimizer, which is
why it is not told before it is made (``SafeTrainer`` writes all of it, gathered).
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from bitdistiller.errors import UserError


def shard(model: PreTrainedModel) -> None:
    """Shard every parameter of ``model`` over the processes of this run, in place.

    Raises:
        UserError: the architecture does not say what its blocks are.
    """
    blocks = set(model._no_split_modules or ())
    units = [module for module in model.modules() if type(module).__name__ in blocks]
    if not units:
        raise UserError(f"{type(model).__name__} names no blocks to shard by; set sharding: none for this run")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model._is_fsdp_managed_module = True  # where the Trainer looks


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether ``shard`` was applied."""
    return getattr(model, "_is_fsdp_managed_module", False)
