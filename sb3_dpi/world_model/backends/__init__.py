"""The hot jobs of a world model for small networks on the CPU, where torch spends most of its time outside of arithmetic.

numpy does the matrix products and numba compiles small loops for the rest. torch stays the reference: a caller asks
``supports`` once, when its networks are built, and runs torch where the answer is no. Arrays go in and come out, of single
precision and contiguous. Parameters and Adam's moments are changed in place, so that ``torch_memory`` can hand out torch's own
memory::

    supports(sizes, device="cpu") -> bool              # hidden layers, on the CPU, numba there and not disabled
    supports_optimizer(optimizer) -> bool              # plain Adam of one group of parameters
    array_of(tensor) -> array                          # the tensor's own memory where it is contiguous and on the CPU
    adam_of(parameter, optimizer, n_steps) -> AdamArrays      # counts the steps that will be taken

    NetworkArrays(flat [E, P], sizes, layer_norm=False)       # layer after layer, weights [n_in, n_out] before the bias
    AdamArrays(first [E, P], second [E, P], step, rate, beta_1=.9, beta_2=.999, epsilon=1e-8)
    PolicyArrays(network, log_std_low, log_std_high)          # outputs: mean, then raw log standard deviation
    ModelArrays(network, gain [dx], offset [dx], reward_mean, reward_std, state_low [dx], state_high [dx])
    CriticBatches(states [K, B, dx], actions [K, B, du], rewards [K, B], next_states [K, B, dx], continuation [K, B],
                  noise [K, B, du])
    WindowArrays(states [E m, dx], state_residuals [H, E m, dx], reward_residuals [H, E m], noise [H + 1, E m, du])

    fit_ensemble(network, adam, inputs [K, E, B, n_in], targets [K, E, B, n_out]) -> mean loss
    fit_classifier(network, adam, inputs [K, B, n_in], labels [K, B]) -> None
    update_critic(network, slow [2, P], adam, tau, policy, batches, temperature, gamma, low, high) -> (loss, last target)
    window_gradient(policy, model, termination | None, critic, windows, temperature, gamma) -> (gradient [P], J, entropy)

The jobs run without numba too, slowly, as plain Python: that is for tests. Networks of one member that act, or
imitate by least squares, take numpy alone: ``numpy_networks``.
"""

from sb3_dpi.world_model.backends.arrays import (
    AdamArrays,
    CriticBatches,
    ModelArrays,
    NetworkArrays,
    PolicyArrays,
    WindowArrays,
)
from sb3_dpi.world_model.backends.compilation import supports
from sb3_dpi.world_model.backends.fits import fit_classifier, fit_ensemble, update_critic
from sb3_dpi.world_model.backends.torch_memory import adam_of, array_of, supports_optimizer
from sb3_dpi.world_model.backends.windows import window_gradient

__all__ = [
    "AdamArrays",
    "CriticBatches",
    "ModelArrays",
    "NetworkArrays",
    "PolicyArrays",
    "WindowArrays",
    "adam_of",
    "array_of",
    "fit_classifier",
    "fit_ensemble",
    "supports",
    "supports_optimizer",
    "update_critic",
    "window_gradient",
]
