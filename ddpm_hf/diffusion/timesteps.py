"""How training draws its timesteps."""

from collections.abc import Callable

import torch


class UniformTimesteps:
    """t ~ Uniform({0, ..., T-1}) (DDPM, algorithm 1, line 3)."""

    def __init__(self, T: int, device: torch.device) -> None:
        self.T, self.device = T, device

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps, int64 (n,), and the weight of each one's loss, float32 (n,)."""
        return torch.randint(self.T, (n,), device=self.device), torch.ones(n, device=self.device)

    def observe(self, t: torch.Tensor, loss: torch.Tensor) -> None:
        """Takes note of the losses (N,) at the timesteps (N,)."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        pass


class ImportanceTimesteps:
    """t in proportion to sqrt(E[L_t^2]) of its last losses (Nichol & Dhariwal 2021, equation 18), once each has enough.

    Every process sees all processes' losses, through `gather`; nothing here makes the host wait for the device.
    """

    HISTORY = 10  # losses kept of each timestep, and needed of each before t is no longer uniform
    UNIFORM = 0.001  # share drawn uniformly, so that no weight grows without bound

    def __init__(
        self, T: int, device: torch.device, gather: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    ) -> None:
        self.T, self.gather = T, gather
        self.losses = torch.zeros(T, self.HISTORY + 1, device=device)  # the last column takes what is not kept
        self.seen = torch.zeros(T, dtype=torch.int64, device=device)

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps, int64 (n,), and the weights 1 / (T p_t) that keep the mean loss unbiased, float32 (n,)."""
        size = self.losses[:, : self.HISTORY].square().mean(dim=1).sqrt()
        p = size / size.sum().clamp(min=1e-30) * (1 - self.UNIFORM) + self.UNIFORM / self.T
        p = p / p.sum()
        p = torch.where((self.seen >= self.HISTORY).all(), p, torch.full_like(p, 1 / self.T))
        # by the inverse of the distribution function: torch.multinomial makes the host wait for a batch of one
        t = torch.searchsorted(p.cumsum(dim=0), torch.rand(n, device=p.device), right=True).clamp(max=self.T - 1)
        return t, 1 / (self.T * p[t])

    def observe(self, t: torch.Tensor, loss: torch.Tensor) -> None:
        """Takes note of the losses (N,) at the timesteps (N,) of every process; of one that is not finite, of nothing."""
        t, loss = self.gather(t), self.gather(loss.float())
        finite = loss.isfinite()
        same = (t[:, None] == t[None, :]) & finite[None, :]
        earlier, later = same.tril(-1).sum(dim=1), same.triu(1).sum(dim=1)  # of the same timestep in this batch
        kept = finite & (later < self.HISTORY)
        column = torch.where(kept, (self.seen[t] + earlier) % self.HISTORY, self.HISTORY)
        self.losses[t, column] = torch.where(kept, loss, torch.zeros_like(loss))
        self.seen.index_add_(0, t, finite.long())

    def state(self) -> dict[str, torch.Tensor]:
        return {"losses": self.losses, "seen": self.seen}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.losses.copy_(state["losses"])
        self.seen.copy_(state["seen"])
