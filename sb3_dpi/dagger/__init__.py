from sb3_dpi.dagger.dagger import DAgger
from sb3_dpi.dagger.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DAgger", "MlpPolicy", "MultiInputPolicy"]
