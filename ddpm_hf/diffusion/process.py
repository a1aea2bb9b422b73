"""The forward process q and its posterior (Ho et al. 2020, section 2)."""

from typing import Literal

import torch

PredictionType = Literal["epsilon", "sample", "v_prediction"]


class DiffusionProcess:
    """Tables over the timesteps, each (T,): computed in float64 from the betas, cast once to `dtype`.

    A float32 product is off by 1e-4 where 1 - alpha_bar is small.
    """

    def __init__(self, betas: torch.Tensor, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        beta = betas.double().cpu()
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])  # alpha_bar_{t-1}
        variance = beta * (1 - before) / (1 - alpha_bar)  # beta tilde, equation 7; 0 at the first timestep
        # its log there is the next one's, as in Nichol & Dhariwal's code: the first step has no posterior
        log_variance = torch.cat([variance[1:2], variance[1:]]).log()

        def table(values: torch.Tensor) -> torch.Tensor:
            return values.to(device, dtype)

        self.T = len(beta)
        self.signal = table(alpha_bar.sqrt())  # sqrt(alpha_bar_t)
        self.noise = table((1 - alpha_bar).sqrt())  # sqrt(1 - alpha_bar_t)
        self.snr = table(alpha_bar / (1 - alpha_bar))
        self.mean_of_x0 = table(beta * before.sqrt() / (1 - alpha_bar))  # equation 7's two coefficients
        self.mean_of_x_t = table((1 - before) * (1 - beta).sqrt() / (1 - alpha_bar))
        self.log_posterior_variance = table(log_variance)  # log of beta tilde
        self.log_beta = table(beta.log())

    def q_sample(self, x0: torch.Tensor, t: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """x_t ~ q(x_t | x_0), equation 4: sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon; (N, C, H, W)."""
        return at(self.signal, t) * x0 + at(self.noise, t) * epsilon

    def posterior_mean(self, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The mean of q(x_{t-1} | x_t, x_0), equation 7; (N, C, H, W)."""
        return at(self.mean_of_x0, t) * x0 + at(self.mean_of_x_t, t) * x_t

    def target(self, kind: PredictionType, x0: torch.Tensor, t: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict; v = sqrt(alpha_bar_t) epsilon - sqrt(1 - alpha_bar_t) x_0."""
        match kind:
            case "epsilon":
                return epsilon
            case "sample":
                return x0
            case "v_prediction":
                return at(self.signal, t) * epsilon - at(self.noise, t) * x0

    def to_x0(self, kind: PredictionType, prediction: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The image that a prediction means."""
        match kind:
            case "epsilon":
                return (x_t - at(self.noise, t) * prediction) / at(self.signal, t)
            case "sample":
                return prediction
            case "v_prediction":
                return at(self.signal, t) * x_t - at(self.noise, t) * prediction


def at(table: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A table's values at the timesteps `t` (N,), shaped (N, 1, 1, 1) to go with images."""
    return table[t].view(-1, 1, 1, 1)
