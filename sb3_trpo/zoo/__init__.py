"""
RL Zoo with our algorithms: ``python -m sb3_trpo.zoo train --algo trpo --env Hopper-v5``; needs the extra ``[zoo]``.

Every script of RL Zoo takes its own arguments; ``trpo`` means :class:`sb3_trpo.TRPO`, ``trpo_mask``, ``trpo_lstm`` and
``trpo_mask_lstm`` its variants, and settings come from ``zoo_configs`` unless ``--conf-file`` is given. One script is ours:
``report`` evaluates and draws a finished run. RL Zoo itself is not touched: names are replaced in this process only.
"""
