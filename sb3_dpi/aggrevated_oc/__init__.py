from sb3_dpi.aggrevated_oc.aggrevated_oc import AggreVaTeDOC
from sb3_dpi.aggrevated_oc.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["AggreVaTeDOC", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
