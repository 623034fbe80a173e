"""What the rows of the node's queue look like: the tables, and a series as it stands on disk."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

SCHEMA = """
create table if not exists instances (
    uid text primary key,
    series text not null,
    sop_class text not null,
    syntax text not null,
    size integer not null,
    file text not null,
    sha256 text not null,
    belongs text not null,
    expected integer not null,
    arrived real not null
);
create index if not exists instances_of_series on instances (series);
create table if not exists series (
    uid text primary key,
    study text not null,
    modality text not null,
    peer text not null,
    state text not null check (state in ('received', 'complete', 'explaining', 'explained', 'sent', 'passed', 'failed')),
    first real not null,
    arrived real not null,
    due real not null default 0,
    association text not null default '',
    released integer not null default 0,
    tries integer not null default 0,
    version integer not null default 0,
    content text not null default '',
    removed integer not null default 0,
    words text not null default '',
    note text not null default '',
    changed real not null
);
create index if not exists series_by_state on series (state);
create table if not exists results (
    series text not null,
    uid text not null,
    address text not null,
    state text not null check (state in ('waiting', 'sent', 'refused')),
    attempts integer not null,
    words text not null,
    changed real not null,
    primary key (address, uid)
);
create index if not exists results_of_series on results (series);
create index if not exists results_by_state on results (state, address);
create table if not exists held (one integer primary key check (one = 1), count integer not null, size integer not null);
insert or ignore into held values (1, 0, 0);
create table if not exists node (
    one integer primary key check (one = 1),
    pid integer not null,
    aet text not null,
    port integer not null,
    started real not null,
    beat real not null
);
create trigger if not exists one_more after insert on instances begin
    update held set count = count + 1, size = size + new.size;
end;
create trigger if not exists one_less after delete on instances begin
    update held set count = count - 1, size = size - old.size;
end;
create trigger if not exists one_changed after update of size on instances begin
    update held set size = size + new.size - old.size;
end;
"""
PUT_INSTANCE = """
insert into instances values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (uid) do update set
    series = excluded.series, sop_class = excluded.sop_class, syntax = excluded.syntax, size = excluded.size, file = excluded.file,
    sha256 = excluded.sha256, belongs = excluded.belongs, expected = excluded.expected, arrived = excluded.arrived
"""
# What is being explained goes on: its outcome is compared with what lies here then.
PUT_SERIES = """
insert into series (uid, study, modality, peer, association, state, first, arrived, note, changed)
values (:uid, :study, :modality, :peer, :association, 'received', :at, :at, :note, :at)
on conflict (uid) do update set
    peer = excluded.peer, association = excluded.association, arrived = excluded.arrived, changed = excluded.changed, due = 0,
    released = 0, words = '',
    state = case when state = 'explaining' then state else 'received' end,
    note = case when excluded.note <> '' and state not in ('received', 'complete') then excluded.note else note end
"""
# `missing`: how many instances the headers promise beyond those that are here.
SELECT_SERIES = """
select *,
    (select count(*) from instances where instances.series = series.uid) as here,
    coalesce((select sum(lacks) from (
        select max(max(expected) - count(*), 0) as lacks from instances where instances.series = series.uid group by belongs
    )), 0) as missing
from series
"""


@dataclass(frozen=True)
class Held:
    """How many instances lie in the queue, their bytes, and how many are of the series that was asked for."""

    count: int
    size: int
    of_series: int


@dataclass(frozen=True)
class SeriesRow:
    """A series as it stands on disk.

    Parameters
    ----------
    peer
        Who sent its last instance: 'AET@address'.
    here, missing, removed
        How many instances lie here, how many more its headers promise, and how many had been here before they were removed.
    first, arrived, changed, due
        When its first and its last instance came, when it was last changed, and when it is to be looked at again at the earliest:
        seconds since 1970.
    released
        Whether the association that its last instance came by was ended in order: its peer was not cut off, nor were we.
    tries, version
        How often it was begun to be explained, and how many results were made of different contents.
    content
        The digest of what was explained last, or ''.
    words, note
        Why it stands where it stands; what should be known of what came.
    """

    uid: str
    study: str
    modality: str
    peer: str
    state: str
    here: int
    missing: int
    removed: int
    first: float
    arrived: float
    changed: float
    due: float
    released: int
    tries: int
    version: int
    content: str
    words: str
    note: str


def series_row(row: sqlite3.Row) -> SeriesRow:
    """Return a row of `SELECT_SERIES` as a value."""
    return SeriesRow(**{name: row[name] for name in SeriesRow.__dataclass_fields__})
