"""The row ``peers``: best-of-N by optillm and its_hub over the same engine.

They live in an environment of their own (``scripts/peers`` makes it). What runs there, and imports
nothing of this project, is ``its_hub_driver.py`` and ``optillm/plugins/reward_bon.py``.
"""
