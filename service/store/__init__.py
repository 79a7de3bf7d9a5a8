"""Store of load tests, preferences, rollouts, measured settings and tuning runs.

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
    delete_run,
    find_run,
    get_run,
    label_run,
    list_runs,
    newest_results,
    tag_run,
)
from service.store.tune import (
    StoredTuneRun,
    TuneRunSummary,
    delete_tune_run,
    list_tune_runs,
    read_tune_run,
    save_tune_run,
    save_tune_table,
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
    "StoredTuneRun",
    "TuneRunSummary",
    "add_preference",
    "add_run",
    "delete_auto_table",
    "delete_run",
    "delete_tune_run",
    "find_run",
    "get_run",
    "human_win_rates",
    "label_run",
    "list_runs",
    "list_tune_runs",
    "newest_results",
    "open_store",
    "read_auto_table",
    "read_rollout",
    "read_tune_run",
    "save_auto_table",
    "save_rollout",
    "save_tune_run",
    "save_tune_table",
    "tag_run",
]
