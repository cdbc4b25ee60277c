from sb3_dpi.dual_ac.dual_ac import DualAC
from sb3_dpi.dual_ac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, RBFPolicy

__all__ = ["CnnPolicy", "DualAC", "MlpPolicy", "MultiInputPolicy", "RBFPolicy"]
