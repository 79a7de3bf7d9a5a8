"""Shared parts of the service and the training package: mathematics, engines, reward models, files.

Importing this package needs neither torch nor vllm; only ``vbon.engine.vllm.engine`` and
``vllm_host`` import vllm and only ``vbon.rewards.classifier`` imports torch and transformers, when
they are started.
"""

__version__ = "0.1.0"
