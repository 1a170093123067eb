"""What a fresh or trained network does to gradients and memory.

Most functions take one sequence. `jax.vmap` and `jax.jit` work on all of them except `fixed_points`
and `gate_statistics`, whose last part runs in NumPy. `jaxgru.diagnostics.plots` draws what they
return. That module needs matplotlib, and is not imported here.
"""

from jaxgru.diagnostics.fixed_points import FixedPoints, RestingPoints, fixed_points
from jaxgru.diagnostics.gates import Gate, GateStatistics, gate_statistics
from jaxgru.diagnostics.gradients import MemoryGradient, gradient_norms, memory_gradient
from jaxgru.diagnostics.jacobians import GRUJacobianTerms, gru_jacobian_terms, state_jacobians
from jaxgru.diagnostics.lyapunov import LyapunovSpectrum, lyapunov_spectrum

__all__ = [
    "FixedPoints",
    "GRUJacobianTerms",
    "Gate",
    "GateStatistics",
    "LyapunovSpectrum",
    "MemoryGradient",
    "RestingPoints",
    "fixed_points",
    "gate_statistics",
    "gradient_norms",
    "gru_jacobian_terms",
    "lyapunov_spectrum",
    "memory_gradient",
    "state_jacobians",
]
