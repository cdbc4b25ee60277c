from sb3_dpi.mpc.mpc import MPC

__all__ = ["MPC"]
