"""The row ``peers``: best-of-N by optillm and its_hub over the same engine.

The peers are installed in an environment of their own, which ``scripts/peers`` creates.
``its_hub_driver.py`` and ``optillm/plugins/reward_bon.py`` run there and import nothing of this project.
"""
