"""Learning from a ledger in a store that is far away: the lists of several entries are fetched while those before them are taken over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from mailbackup.errors import DamageError, MailbackupError
from mailbackup.model import codec
from mailbackup.model.ledger import LedgerEntry, Lists
from mailbackup.stores.base import Store
from mailbackup.upkeep.parallel import in_order
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import Link, stops_of


def learning(registry: Registry, store: Store, links: Iterable[Link]) -> Iterator[Link]:
    """The entries, each once `registry` has taken it over. What `links` raises comes after all entries before it."""
    if store.traits.parallel < 2:
        for link in links:
            registry.learn(store, link)
            yield link
        return
    broken: list[MailbackupError] = []
    for link, whole in in_order(partial(_with_stops, store), _sound(links, broken), store.traits.parallel):
        registry.learn(store, link if whole is None else link._replace(entry=whole))
        if whole is not None and link.entry.lists is not None and link.entry.lists.stops is not None:
            registry.objects[link.entry.lists.stops.key] = link.entry.lists.stops.sha256
        yield link
    if broken:
        raise broken[0]


def _sound(links: Iterable[Link], broken: list[MailbackupError]) -> Iterator[Link]:
    """The entries up to where the chain breaks, or the store goes away."""
    try:
        yield from links
    except MailbackupError as error:
        broken.append(error)


def _with_stops(store: Store, link: Link) -> tuple[Link, LedgerEntry | None]:
    """An entry, and the same with its stops in its line; None when they stand there anyway, or cannot be read: the registry says why."""
    lists = link.entry.lists
    if lists is None or lists.stops is None:
        return link, None
    try:
        return link, codec.changed(link.entry, stops=tuple(stops_of(store, link.entry)), lists=Lists(live=lists.live))
    except (DamageError, ValueError):
        return link, None
