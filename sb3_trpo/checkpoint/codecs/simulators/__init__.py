"""
Simulators with state that an environment's attributes do not show.

MuJoCo's state can be read and written (``mujoco.py``). Box2D's and Atari's cannot, so their episodes are replayed
(``replay.py``).
"""
