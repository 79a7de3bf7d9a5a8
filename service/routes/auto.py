"""``/auto/table``: the measured settings that mode ``auto`` chooses from; admins may change them."""

from __future__ import annotations

from fastapi import APIRouter

from service.auto.choice import option_of, unpriced
from service.auto.live import LiveAuto
from service.routes.dependencies import ADMINS_ONLY, SAME_ORIGIN_ONLY, AutoDep
from service.schemas.auto import AutoRow, AutoTable
from service.schemas.failure import WITH_BODY, errors
from vbon.errors import NotFoundError
from vbon.measured.table import MeasuredSetting, MeasuredTable

router = APIRouter(prefix="/auto", tags=["auto"])

_CHANGES = [*SAME_ORIGIN_ONLY, *ADMINS_ONLY]


@router.get("/table", responses=errors(404))
async def get_table(auto: AutoDep) -> AutoTable:
    """The table in use, which of its settings can be used now, and why the others cannot."""
    return _table(auto)


@router.put("/table", responses=WITH_BODY | errors(503), dependencies=_CHANGES)
async def put_table(body: MeasuredTable, auto: AutoDep) -> AutoTable:
    """Use this table from now on, and keep it in the store if there is one.

    One of which no setting can be used, because it was measured with other models or on other hardware, is
    refused, and the table before stays in use.
    """
    await auto.table.put(body)
    return _table(auto)


@router.delete("/table", responses=errors(404, 503), status_code=204, dependencies=_CHANGES)
async def delete_table(auto: AutoDep) -> None:
    """Use no table from now on, and remove it from the store."""
    await auto.table.delete()


def _table(auto: LiveAuto) -> AutoTable:
    in_use, found = auto.table, auto.table.table
    if found is None:
        raise NotFoundError(
            "this server has no table of measured settings; make one with `vbon tune` or `vbon loadtest "
            "table`, and send it with PUT /auto/table"
        )
    usable = in_use.usable()
    general = " ".join(usable.general) or None
    return AutoTable(
        source=in_use.source,
        stored=in_use.stored,
        made_at=found.made_at,
        made_by=found.made_by,
        prompts=found.prompts,
        hardware=found.hardware,
        policies=found.policies,
        reward_revision=found.reward_revision,
        gold_revision=found.gold_revision,
        concurrency=found.concurrency,
        gain=auto.prices.gain,
        usable=len(usable.rows),
        reasons=usable.reasons,
        rows=[
            _row(auto, row, general or usable.refused.get(place))
            for place, row in enumerate(found.rows)
        ],
    )


def _row(auto: LiveAuto, row: MeasuredSetting, reason: str | None) -> AutoRow:
    option = None
    if unpriced(row, auto.prices) is None:
        option = option_of(row, auto.prices, concurrency=auto.table.concurrency)
    return AutoRow(
        setting=row,
        usable=reason is None,
        reason=reason,
        value=None if option is None else option.value,
        price=None if option is None else option.price,
        money=None if option is None else option.money,
    )
