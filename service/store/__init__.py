"""Store of load tests, preferences, rollouts and measured settings.

It is SQLite by default and PostgreSQL by URL, with the same code.
"""

from service.store.auto import delete_auto_table, read_auto_table, save_auto_table
from service.store.database import Store, open_store
from service.store.distil import (
    RolloutChange,
    StoredCheckpoint,
    StoredEvent,
    StoredRollout,
    read_rollout,
    save_rollout,
)
from service.store.preferences import (
    HumanWinRate,
    Preference,
    Shown,
    add_preference,
    human_win_rates,
)
from service.store.runs import (
    RunSummary,
    add_run,
    find_run,
    get_run,
    list_runs,
    newest_results,
    tag_run,
)

__all__ = [
    "HumanWinRate",
    "Preference",
    "RolloutChange",
    "RunSummary",
    "Shown",
    "Store",
    "StoredCheckpoint",
    "StoredEvent",
    "StoredRollout",
    "add_preference",
    "add_run",
    "delete_auto_table",
    "find_run",
    "get_run",
    "human_win_rates",
    "list_runs",
    "newest_results",
    "open_store",
    "read_auto_table",
    "read_rollout",
    "save_auto_table",
    "save_rollout",
    "tag_run",
]
