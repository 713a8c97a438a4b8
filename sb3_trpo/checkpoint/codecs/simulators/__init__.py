"""
Simulators that keep their state where an environment's attributes do not show it.

MuJoCo's state can be read and written (``mujoco.py``). Box2D's and Atari's cannot, so their episodes are replayed
(``replay.py``).
"""
