"""Which updates are usable, decided on the device: no step waits until its numbers have reached the host."""

import math

import torch

from smallm_hf.training.checkpoints import LoopState

# A spike is looked for among so many updates, once there are half of them.
SPIKE_HISTORY = 128
# What is counted on the device, in this order: numbers of the state, and those of the last update left out.
COUNTED = ("nats_since_log", "updates_since_log", "skipped_steps", "skipped_in_a_row", "gradient_norm")
COUNTS = (*COUNTED, "bad_loss", "bad_norm")


class UpdateWatch:
    """Judges and counts the updates of a run; `read` is the one place where the host waits for the device.

    Args:
        device: where losses and norms are.
        state: the counters to start from.
        threshold: an update is a spike where loss or norm is so many standard deviations above the mean of the last
            128; None looks for none.
    """

    def __init__(self, device: torch.device, state: LoopState, threshold: float | None):
        self.threshold = threshold
        self.counts = torch.tensor([float(getattr(state, name, math.nan)) for name in COUNTS], device=device)
        histories = (state.recent_losses, state.recent_norms)
        padded = [[math.nan] * (SPIKE_HISTORY - len(history)) + history for history in histories]
        self.history = torch.tensor(padded, device=device)  # (2, 128), the newest last

    def judge(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Whether an update of this loss and gradient norm (before clipping) is usable: finite, and no spike.

        Returns:
            A boolean on the device; equal on all processes, which have the same numbers.
        """
        values = torch.stack([loss, norm]).float()  # (2,)
        finite = values.isfinite()
        usable = finite.all()
        if self.threshold is not None:
            mean = self.history.nanmean(dim=1)
            deviation = (self.history - mean[:, None]).square().nanmean(dim=1).sqrt()
            known = (~self.history.isnan()).sum(dim=1) >= SPIKE_HISTORY // 2
            usable = usable & ~(known & (values > mean + self.threshold * deviation)).any()
            moved = torch.cat([self.history[:, 1:], values[:, None]], dim=1)
            self.history = torch.where(finite[:, None], moved, self.history)
        nats, updates, skipped, in_a_row, _, *bad = self.counts.unbind()
        self.counts = torch.stack(
            [
                nats + torch.where(usable, values[0], 0.0),
                updates + usable,
                skipped + ~usable,
                torch.where(usable, 0.0, in_a_row + 1),
                values[1],
                *torch.where(usable, torch.stack(bad), values),
            ]
        )
        return usable

    def read(self, state: LoopState) -> tuple[float, float]:
        """Brings the counters of a state up to date.

        Returns:
            Loss and gradient norm of the last update that was left out.
        """
        *counted, bad_loss, bad_norm = self.counts.tolist()
        for name, value in zip(COUNTED, counted, strict=True):
            setattr(state, name, type(getattr(state, name))(value))
        if self.threshold is not None:
            kept = [[value for value in row if not math.isnan(value)] for row in self.history.tolist()]
            state.recent_losses, state.recent_norms = kept
        return bad_loss, bad_norm

    def begin_record(self) -> None:
        """Forgets the losses that have been logged."""
        self.counts[:2] = 0.0
