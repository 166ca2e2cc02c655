"""Tables of the run store, how to recognise them in a database, and the migration of older stores.

Format 2 added the journal (`chain`), and the folder and owner of each run. Rates of format 1 lack the optimizer and are
dropped. Format 3 added the parents of each run. Format 4 added the outcomes of stages to the journal. The table
``run_facts`` and the indexes came without a new format: older versions leave them alone, and rows that they add are
completed when this version opens the store for writing.
"""

from __future__ import annotations

import sqlalchemy as sa

FORMAT = 4
APPLICATION = 0x41726D69  # the application_id of our SQLite files: "Armi"

metadata = sa.MetaData()

form = sa.Table("format", metadata, sa.Column("version", sa.Integer, primary_key=True))

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),  # pending, running, done, failed, refused, diverged
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("result", sa.JSON),
    sa.Column("folder", sa.Text),  # the store's folder where its files were last written
    sa.Column("owner", sa.String(32)),  # the process that last started it
    sa.Column("parents", sa.JSON(none_as_null=True)),  # ids of the runs whose weights it starts from, or null
)

# What lists and filters show of a specification, so that they need not read it: `facts_of`.
run_facts = sa.Table(
    "run_facts",
    metadata,
    sa.Column("run", sa.String(16), primary_key=True),
    sa.Column("shape", sa.String(32), nullable=False),  # layers x width
    sa.Column("parameters", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("flops", sa.Float, nullable=False),
    sa.Column("mixture", sa.JSON, nullable=False),  # weights of the first phase
    sa.Column("tags", sa.Text, nullable=False),  # words, with a blank before and after each
)

study_runs = sa.Table(
    "study_runs",
    metadata,
    sa.Column("study", sa.String(64), primary_key=True),
    sa.Column("run", sa.String(16), sa.ForeignKey("runs.id"), primary_key=True),
)

stages = sa.Table(
    "stages",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

predictions = sa.Table(
    "predictions",
    metadata,
    sa.Column("run", sa.String(16), primary_key=True),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("sha256", sa.String(16), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("run", sa.String(16), sa.ForeignKey("predictions.run"), primary_key=True),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

rates = sa.Table(
    "rates",
    metadata,
    sa.Column("machine", sa.String(16), primary_key=True),
    sa.Column("shape", sa.String(16), primary_key=True),  # of the model, optimizer and batches: `rates.Work`
    sa.Column("context_length", sa.Integer, primary_key=True),
    sa.Column("batch_sequences", sa.Integer, primary_key=True),
    sa.Column("precision", sa.String(8), primary_key=True),
    sa.Column("how", sa.String(8), primary_key=True),  # probe, runs
    sa.Column("tokens_per_s", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("about", sa.JSON, nullable=False),
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("run", sa.String(16), nullable=False),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("about", sa.JSON, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
)

# Records are immutable (contract 4): the database itself refuses a change. In SQLite a trigger also checks INSERT,
# because INSERT OR REPLACE deletes without firing the trigger for deletion.
_REFUSE = {
    "sqlite": [
        f"CREATE TRIGGER %(table)s_{verb} BEFORE {verb} ON %(table)s {condition} "
        "BEGIN SELECT RAISE(ABORT, '%(table)s are never rewritten'); END"
        for verb, condition in (
            ("UPDATE", ""),
            ("DELETE", ""),
            ("INSERT", "WHEN EXISTS (SELECT 1 FROM %(table)s WHERE {key} = NEW.{key})"),
        )
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION %(table)s_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '%(table)s are never rewritten'; END $$",
        "CREATE TRIGGER %(table)s_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON %(table)s "
        "EXECUTE FUNCTION %(table)s_refuse()",
    ],
}
for _table, _key in ((predictions, "run"), (verdicts, "run"), (journal, "seq")):
    for _dialect, _statements in _REFUSE.items():
        for _statement in _statements:
            _rule = sa.DDL(_statement.replace("{key}", _key))  # type: ignore[no-untyped-call]
            sa.event.listen(_table, "after_create", _rule.execute_if(dialect=_dialect))

# Lists are read in the order of time, whole or of one status; `create_all` adds indexes to new tables only.
INDEXES = (
    sa.Index("runs_by_time", runs.c.created_at, runs.c.id),
    sa.Index("runs_by_status", runs.c.status, runs.c.created_at, runs.c.id),
    sa.Index("runs_by_state", runs.c.id, runs.c.status, runs.c.started_at, runs.c.finished_at),
    sa.Index("run_facts_by_shape", run_facts.c.shape),
    sa.Index("study_runs_by_run", study_runs.c.run),
    sa.Index("journal_by_run", journal.c.run),
)

_ADDED = {"runs": ("folder", "owner", "parents")}  # since format 1


def strangers(db: sa.Connection) -> list[str]:
    """Names of tables and views of another program; empty for an empty database or a store of any format."""
    inspector = sa.inspect(db)
    views = set(inspector.get_view_names())
    found = {*inspector.get_table_names(), *views}
    if not found:
        return []
    if views & set(metadata.tables):  # in a store these are tables
        return sorted(views & set(metadata.tables))
    ours = {name: table for name, table in metadata.tables.items() if name in found}
    for name, table in ours.items():
        wanted = {column.name for column in table.columns} - set(_ADDED.get(name, ()))
        columns = {column["name"] for column in inspector.get_columns(name)}
        if not (columns == wanted if table is form else wanted <= columns):
            return [name]
    if form.name not in ours:
        return sorted(found)
    # An older version may have been killed between its first table and the others.
    unfinished = runs.name not in ours or db.execute(sa.select(sa.func.count()).select_from(form)).scalar() == 0
    return sorted(found - set(ours)) if unfinished else []


def version(db: sa.Connection) -> object:
    """The recorded format of the database; None for a new one."""
    return db.execute(sa.select(sa.func.max(form.c.version))).scalar() if sa.inspect(db).has_table(form.name) else None


def add_columns(db: sa.Connection) -> None:
    """Add the missing columns to the tables of an older format."""
    for name, columns in _ADDED.items():
        there = {column["name"] for column in sa.inspect(db).get_columns(name)}
        for column in columns:
            if column not in there:
                kind = metadata.tables[name].columns[column].type.compile(db.dialect)
                db.execute(sa.DDL(f"ALTER TABLE {name} ADD COLUMN {column} {kind}"))  # type: ignore[no-untyped-call]


def add_indexes(db: sa.Connection) -> None:
    """Create the indexes that the tables lack."""
    inspector = sa.inspect(db)
    for index in INDEXES:
        assert index.table is not None
        if index.name not in {found["name"] for found in inspector.get_indexes(index.table.name)}:
            index.create(db)
