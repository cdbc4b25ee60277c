from sb3_dpi.dpi.dpi import DPI
from sb3_dpi.dpi.policies import MlpPolicy, MultiInputPolicy

__all__ = ["DPI", "MlpPolicy", "MultiInputPolicy"]
