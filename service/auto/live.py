"""Mode ``auto`` by price in a running service: its prices, table and router together."""

from __future__ import annotations

from service.auto.choice import Prices
from service.auto.price_router import PriceRouter
from service.auto.table_in_use import TableInUse
from service.runtime.runtime import Runtime
from service.settings import AutoSettings
from service.store.async_store import AsyncStore


class LiveAuto:
    """The table in use and the router over it, which answers while there is a table.

    Raises:
        DataError: the file of the settings cannot be read, or is not a table.
    """

    def __init__(self, runtime: Runtime, store: AsyncStore) -> None:
        self._runtime = runtime
        self.prices = prices_of(runtime.settings.auto)
        self.table = TableInUse(runtime, store, self.prices, self._serve)
        self.router = PriceRouter(runtime, self.table, self.prices)
        self._serve()

    @property
    def is_loaded(self) -> bool:
        """True once the models are loaded; until then, revisions may be unknown."""
        return self._runtime.loaded

    def _serve(self) -> None:
        has_table = self.table.table is not None
        self._runtime.serve_by_price(self.router if has_table else None)


def prices_of(settings: AutoSettings) -> Prices:
    """The prices and the limit of the settings."""
    return Prices(
        gain=settings.gain,
        token=settings.token_price,
        latency=settings.latency_price,
        p95_s=None if settings.p95_ms is None else settings.p95_ms / 1e3,
        hour=settings.price_per_hour,
        million_tokens=settings.price_per_million_tokens,
    )
