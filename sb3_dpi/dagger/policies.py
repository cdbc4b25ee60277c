from sb3_dpi.common.policies import (
    BoundedGaussianCnnPolicy,
    BoundedGaussianMultiInputPolicy,
    BoundedGaussianPolicy,
)

MlpPolicy = BoundedGaussianPolicy
CnnPolicy = BoundedGaussianCnnPolicy
MultiInputPolicy = BoundedGaussianMultiInputPolicy
