"""Which parameters get which optimizer, and the learning rate as a pure function of progress."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from smallm_hf.base.arithmetic import multiplies_well
from smallm_hf.families import parameter_groups

# A timed run does not know the length of its first updates: they warm up from this share of the run on, not from zero.
FIRST_PROGRESS = 1e-3
# `warmup_steps` of a long run would swallow a short one: no warm-up takes more than this share of a run.
LONGEST_WARMUP = 0.1


class Muon(torch.optim.Muon):
    """torch's Muon with matrices of one shape orthogonalised together: fewer and larger multiplications.

    As fused AdamW does, a step leaves out its update where the tensor `found_inf` is not zero. Where matrices are split
    among processes, each holds its share of the momentum, gathers all of an update to orthogonalise it, and keeps its
    share of that.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates every matrix once; `closure` is not supported."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            alike = defaultdict(list)  # wide and tall matrices of one shape together
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[tuple(sorted(parameter.shape)), parameter.device].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        rate = group["lr"]
        if hasattr(self, "found_inf"):
            rate = rate * (1 - self.found_inf)
            kept = self.found_inf == 0  # a gradient that is NaN must not reach the momentum
            gradients = [torch.where(kept, g, b) for g, b in zip(gradients, buffers, strict=True)]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        gradients = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        matrices = map(whole_tensor, gradients)
        wide = torch.stack([g if g.shape[0] <= g.shape[1] else g.T for g in matrices])  # (N, rows, columns)
        wide = orthogonalize(wide, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for parameter, update in zip(parameters, wide, strict=True):
            rows, columns = parameter.shape
            update = update if rows <= columns else update.T
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.sub_(shared_out(update, parameter) * (rate * math.sqrt(max(1, rows / columns))))


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that is split among processes, all of which must call this; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that every process holds, split among them as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def muon_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype Muon multiplies in: bfloat16, which is exact enough for it, or float32 where that is faster."""
    return torch.bfloat16 if multiplies_well(torch.bfloat16, device) else torch.float32


def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Sends the singular values of wide matrices (N, rows, columns) near to 1, by Newton-Schulz steps in `muon_dtype`.

    The quintic iteration of Jordan et al. 2024 ("Muon: an optimizer for hidden layers"), as torch.optim.Muon has it.
    """
    a, b, c = coefficients
    matrices = matrices.to(muon_dtype(matrices.device))
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=a)
    return matrices


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers behind the interface of one.

    Accelerate must see a single object: with two it updates the gradient scaler twice. `param_groups` is the union of
    the parts' own groups (the same dictionaries, so a rate set here arrives there), `found_inf` is handed on to them;
    `state_dict` holds the parts in order.
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)
        super().__init__([group for part in self.optimizers for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates every part once; `closure` is not supported."""
        assert closure is None, "CombinedOptimizer takes no closure"
        for part in self.optimizers:
            if hasattr(self, "found_inf"):
                part.found_inf = self.found_inf
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The parts' state dictionaries, in order."""
        return {"optimizers": [part.state_dict() for part in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for part, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            part.load_state_dict(state)
        # Loading gives the parts new group dictionaries.
        self.param_groups = [group for part in self.optimizers for group in part.param_groups]


def parts_of(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers of torch inside of one of ours, or of what Accelerate made of it."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return getattr(optimizer, "optimizers", [optimizer])


def build_optimizer(
    model: PreTrainedModel,
    name: str,
    *,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
) -> torch.optim.Optimizer:
    """AdamW for everything, or Muon for the hidden matrices with AdamW for the rest.

    AdamW decays matrices and tables and leaves vectors alone (Loshchilov & Hutter 2019; grouping as in Brown et al.
    2020). Muon is that of Jordan et al. 2024, with the step of a matrix scaled by sqrt(max(1, rows / columns)).
    Every group carries `initial_lr`, the rate that `set_learning_rate` scales.
    """
    groups = parameter_groups(model)
    by_muon = groups["hidden"] if name == "muon" else []
    decayed = ([] if by_muon else groups["hidden"]) + groups["embedding"] + groups["other"]
    pairs = ((decayed, weight_decay), (groups["vector"], 0.0))
    adamw_groups = [{"params": parameters, "weight_decay": decay} for parameters, decay in pairs if parameters]
    optimizer = torch.optim.AdamW(adamw_groups, lr=learning_rate, betas=(beta1, beta2), fused=True)
    if by_muon:
        muon = Muon(by_muon, lr=muon_learning_rate, weight_decay=weight_decay)
        optimizer = CombinedOptimizer([muon, optimizer])
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def rate_factor(
    progress: float,
    step: int,
    *,
    schedule: str,
    warmup_steps: int | None,
    warmup_fraction: float,
    decay_fraction: float,
    final_fraction: float,
) -> float:
    """The learning rate as a share of its peak: a pure function of where the run stands.

    Args:
        progress: share of the run that is done, 0 to 1: of steps, seconds or epochs, whichever ends it first.
        step: optimizer updates done so far.
        schedule: `cosine` (Loshchilov & Hutter 2017) falls from the end of the warm-up to the end of the run; `wsd`
            (warmup-stable-decay, Hu et al. 2024) stays at the peak and falls linearly over the last `decay_fraction`;
            `constant` stays.
        warmup_steps: updates of linear warm-up, at most `LONGEST_WARMUP` of the run; None: `warmup_fraction` of it.
        warmup_fraction: share of the run spent warming up, where `warmup_steps` is None.
        decay_fraction: share of the run over which `wsd` falls.
        final_fraction: the factor at the end of the run, for `cosine` and `wsd`.
    """
    if warmup_steps is None:
        warmup = min(1.0, max(progress, FIRST_PROGRESS) / warmup_fraction) if warmup_fraction else 1.0
        start = warmup_fraction
    else:
        warmup = min(1.0, max((step + 1) / warmup_steps, progress / LONGEST_WARMUP)) if warmup_steps else 1.0
        # Where the warm-up ended, as a share of the run; progress / step is the share of one update.
        start = min(LONGEST_WARMUP, warmup_steps * progress / step) if step else 0.0
    progress = min(1.0, progress)
    if schedule == "constant":
        decay = 1.0
    elif schedule == "wsd":
        remaining = min(1.0, (1 - progress) / decay_fraction) if decay_fraction else 1.0
        decay = final_fraction + (1 - final_fraction) * remaining
    else:
        through = max(0.0, progress - start) / (1 - start) if start < 1 else 0.0
        decay = final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * through))
    return warmup * decay


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rates that act, by their keys in the config."""
    return {
        "muon_learning_rate" if isinstance(part, Muon) else "learning_rate": part.param_groups[0]["lr"]
        for part in parts_of(optimizer)
    }
