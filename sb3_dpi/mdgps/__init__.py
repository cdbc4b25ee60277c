from sb3_dpi.mdgps.mdgps import MDGPS
from sb3_dpi.mdgps.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["MDGPS", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
