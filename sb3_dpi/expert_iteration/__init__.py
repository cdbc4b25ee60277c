from sb3_dpi.expert_iteration.buffers import SearchDictReplayBuffer, SearchReplayBuffer
from sb3_dpi.expert_iteration.expert_iteration import ExIt
from sb3_dpi.expert_iteration.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "ExIt", "MlpPolicy", "MultiInputPolicy", "SearchDictReplayBuffer", "SearchReplayBuffer"]
