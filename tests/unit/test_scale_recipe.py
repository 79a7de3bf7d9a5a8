"""The shipped accelerate configuration is one that accelerate itself takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

RECIPE = Path(__file__).resolve().parents[2] / "docs" / "accelerate-fsdp.yaml"


def loaded() -> Any:
    from accelerate.commands.config.config_args import load_config_from_file

    return load_config_from_file(str(RECIPE))  # unknown keys at the top are refused here


def test_accelerate_loads_it() -> None:
    config = loaded()
    assert config.distributed_type.value == "FSDP"
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (8, 1, "bf16")


def test_every_fsdp_key_is_a_flag_of_accelerate_launch() -> None:
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    assert set(loaded().fsdp_config) <= known


def test_its_words_are_accelerates() -> None:
    from accelerate.utils.constants import FSDP2_STATE_DICT_TYPE, FSDP_AUTO_WRAP_POLICY

    fsdp = loaded().fsdp_config
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_auto_wrap_policy"] in FSDP_AUTO_WRAP_POLICY
    assert fsdp["fsdp_state_dict_type"] in FSDP2_STATE_DICT_TYPE
