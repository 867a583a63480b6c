from dataclasses import dataclass

import torch

import mtmeta


@dataclass(frozen=True)
class GradNorm(mtmeta.Algorithm):
    """Joint training with task weights w_t (sum N) that move so that no task trains too fast (Chen et al. 2018)."""

    name = "gradnorm"

    alpha: mtmeta.NonNegativeFloat = 1.5
    """Strength of the pull to one training rate: targets are the mean norm * (relative inverse rate)^alpha."""
    rate: mtmeta.PositiveFloat = 0.025
    """Learning rate of the task weights: plain SGD on the sum of |norm - target|."""

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        memory, n, losses, norms = learner.memory, len(feed.tasks), [], []
        w = memory.setdefault("weights", torch.ones(n, device=learner.device))
        shared = [None, *(p for k, p in learner.parameters.items() if k.startswith("encoder.") and p.ndim == 2)][-1]
        if shared is None:
            raise mtmeta.RecipeError("algorithm", "gradnorm needs a trained encoder; set adapters.encoder: trained")
        for task, weight in zip(feed.tasks, w.tolist(), strict=True):  # of sum_t w_t L_t / N, with L_t = lambda_t l_t
            others, shared.grad = shared.grad, None
            losses.append(learner.gradient(feed.batch(task), weight * feed.loss_weight(task) / n))
            norms.append(w.new_zeros(()) if shared.grad is None else n * shared.grad.norm())  # G_t, of w_t L_t
            shared.grad = others if shared.grad is None else shared.grad if others is None else shared.grad + others
        loss, norm = torch.stack(losses), torch.stack(norms)
        ratio = loss / memory.setdefault("first", loss.clamp_min(1e-8))  # L_t(n) / L_t(0)
        gap = norm - norm.mean() * (ratio / ratio.mean().clamp_min(1e-12)) ** self.alpha
        moved = (w - self.rate * norm / w * gap.sign()).clamp_min(1e-3)  # never 0 or less
        memory["weights"] = n * moved / moved.sum()


@mtmeta.hookimpl
def register_algorithms() -> list[type[mtmeta.Algorithm]]:
    return [GradNorm]
