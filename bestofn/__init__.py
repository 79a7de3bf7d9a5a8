"""What the service and the training package share: mathematics, engines, reward models, files.

Importing this package needs neither torch nor vllm; only ``bestofn.engine.vllm_engine`` imports
vllm and only ``bestofn.rewards.classifier`` imports torch and transformers, both when started.
"""

__version__ = "0.1.0"
